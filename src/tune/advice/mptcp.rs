//! Kernel MPTCP needs to be told which addresses to use; a path over relays needs none of this.
//!
//! In: a [`Machine`]. Out: advice for a host that dials paths of the form `mptcp:...`, and for one that listens.

use super::{Advice, Machine, advice};

/// The kernel takes no more endpoints (`MPTCP_PM_ADDR_MAX`).
const ENDPOINTS_MAX: usize = 8;

/// An address of this host, as `ip -o address` prints it.
struct Address<'a> {
    device: &'a str,
    /// `inet` or `inet6`.
    family: &'a str,
    address: &'a str,
}

/// Whether it is on, which addresses it uses, how many subflows it may have.
pub(super) fn all(machine: &Machine<'_>) -> Vec<Advice> {
    match machine.read("/proc/sys/net/mptcp/enabled") {
        Err(_) => {
            vec![advice("MPTCP", "this kernel has none; only paths of the form mptcp:... need it", None)]
        }
        Ok(text) if text == "0" => {
            let todo = "sysctl -w net.mptcp.enabled=1 (for paths of the form mptcp:...)";
            vec![advice("MPTCP", "off", Some(todo.into()))]
        }
        Ok(_) => {
            let ip = |arguments: &[&str]| (machine.run)("ip", arguments);
            let (Some(addresses), Some(endpoints), Some(limits)) = (
                ip(&["-o", "address", "show", "up", "scope", "global"]),
                ip(&["mptcp", "endpoint", "show"]),
                ip(&["mptcp", "limits", "show"]),
            ) else {
                let todo = Some("install iproute2 and ask again (for paths of the form mptcp:...)".into());
                return vec![advice("MPTCP", "on, its endpoints and limits are unknown", todo)];
            };
            let addresses = addresses_of(&addresses);
            let endpoints_todo = endpoints_of(&addresses, &endpoints);
            vec![endpoints_todo, limits_of(addresses.len().max(endpoints.lines().count()), &limits)]
        }
    }
}

/// Those of a family of which there are several: one of each family leads over the same line. Temporary addresses change,
/// deprecated ones are about to go.
fn addresses_of(text: &str) -> Vec<Address<'_>> {
    let lines = text
        .lines()
        .filter(|line| !["temporary", "deprecated", "tentative"].iter().any(|no| line.contains(no)));
    let all: Vec<_> = lines
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let device = words.next()?.trim_end_matches(':').split('@').next()?;
            let family = words.next()?;
            let address = words.next()?.split('/').next()?;
            family.starts_with("inet").then_some(Address { device, family, address })
        })
        .collect();
    let count = |family| all.iter().filter(|address| address.family == family).count();
    let (four, six) = (count("inet"), count("inet6"));
    all.into_iter().filter(|address| if address.family == "inet" { four > 1 } else { six > 1 }).collect()
}

/// With one address there is nothing to tell: the connection has it already.
fn endpoints_of(addresses: &[Address<'_>], text: &str) -> Advice {
    let known: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let missing: Vec<_> = addresses.iter().filter(|address| !known.contains(&address.address)).collect();
    let room = ENDPOINTS_MAX.saturating_sub(known.len());
    let now = format!("on, {} endpoints", known.len());
    let todo = (!missing.is_empty() && room > 0).then(|| {
        let add = |address: &&Address<'_>| {
            format!("ip mptcp endpoint add {} dev {} subflow", address.address, address.device)
        };
        let commands: Vec<_> = missing.iter().take(room).map(add).collect();
        format!(
            "where paths of the form mptcp:... are dialled, of these such as lead to the upstream (where they are listened for: \
             signal instead of subflow): {}",
            commands.join("; ")
        )
    });
    advice("MPTCP endpoints", now, todo)
}

/// A subflow for each address beside the first, and one for each that the other end tells of.
fn limits_of(addresses: usize, text: &str) -> Advice {
    let words: Vec<_> = text.split_whitespace().collect();
    let value = |key: &str| {
        words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1)?.parse::<usize>().ok())
    };
    let (subflows, accepted) = (value("subflows").unwrap_or(0), value("add_addr_accepted").unwrap_or(0));
    let wanted = addresses.clamp(2, ENDPOINTS_MAX);
    // With one address there is a second subflow only if the other end has one more.
    let todo = (subflows < wanted - 1 || addresses > 1 && accepted < wanted - 1).then(|| {
        format!("ip mptcp limits set subflows {wanted} add_addr_accepted {wanted} (for paths of the form mptcp:..., on both ends)")
    });
    advice(
        "MPTCP limits",
        format!("{subflows} subflows beside the first, {accepted} announced addresses"),
        todo,
    )
}
