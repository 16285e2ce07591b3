//! Does to the chain what the scenario says.

use std::{rc::Rc, time::Duration};

use super::{
    chain::Chain,
    scenario::{Harm, Ways},
};
use crate::{
    exec::{
        self,
        on_simulator::{Process, freeze, passed},
    },
    net::simulated::{Link, Way},
};

/// A path's rate does not fall below this, or transfers would take for ever.
const BYTES_PER_S_MIN: f64 = 20e3;

/// Runs until all is done.
pub(super) async fn harm(chain: Rc<Chain>) {
    let scenario = chain.scenario.clone();
    for (at, harm) in &scenario.harm {
        exec::sleep(at.saturating_sub(passed())).await;
        let (chain, harm) = (chain.clone(), harm.clone());
        exec::spawn(async move { do_harm(&chain, harm).await });
    }
}

async fn do_harm(chain: &Chain, harm: Harm) {
    let link = |path: usize, near| if near { &chain.legs[path].near } else { &chain.legs[path].far };
    match harm {
        Harm::ResetLane { path, near, pick } => {
            let link = link(path, near);
            let count = link.connections().max(1);
            link.reset(|number| number == pick % count);
        }
        Harm::ResetPath { path, near } => link(path, near).reset(|_| true),
        Harm::Silence { path, near, ways, time } => silence(&[link(path, near)], ways, time).await,
        Harm::SilenceAll { time } => {
            let links: Vec<_> = chain.legs.iter().map(|legs| &legs.near).collect();
            silence(&links, Ways::Both, time).await;
        }
        Harm::Rate { path, factor } => {
            let link = link(path, true);
            link.set_rate((link.rate() * factor).max(BYTES_PER_S_MIN));
        }
        Harm::KillRelay { path, time } => {
            chain.kill_relay(path);
            exec::sleep(time).await;
            chain.start_relay(path);
        }
        Harm::KillUpstream { upstream, time } => {
            chain.kill_upstream(upstream);
            exec::sleep(time).await;
            chain.start_upstream(upstream);
        }
        Harm::FreezeRelay { path, time } => stop(chain.relay(path), time).await,
        Harm::FreezeUpstream { upstream, time } => stop(chain.upstream(upstream), time).await,
        Harm::RemovePath { path, time } => {
            chain.configure(path, false);
            exec::sleep(time).await;
            chain.configure(path, true);
        }
    }
}

async fn silence(links: &[&Rc<Link>], ways: Ways, time: Duration) {
    let set = |is_silent| {
        for link in links {
            if ways != Ways::Down {
                link.silence(Way::Up, is_silent);
            }
            if ways != Ways::Up {
                link.silence(Way::Down, is_silent);
            }
        }
    };
    set(true);
    exec::sleep(time).await;
    set(false);
}

async fn stop(process: Option<Process>, time: Duration) {
    let Some(process) = process else { return };
    freeze(process, true);
    exec::sleep(time).await;
    freeze(process, false);
}
