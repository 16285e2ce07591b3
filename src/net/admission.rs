//! How many connections of strangers may stand at once, in total and for each address.
//!
//! In: addresses of accepted connections. Out: a [`Seat`] for each, or the bound that is reached. Called by whoever
//! accepts: one table for all cores of a role. Invariant: a seat is free again when it is dropped, and the table holds only
//! addresses that have one, so that it is never longer than the bound on all.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bounds and the seats that are taken.
#[derive(Debug)]
pub struct Admission {
    total_max: usize,
    per_address_max: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    total: usize,
    per_address: HashMap<IpAddr, usize>,
}

/// The bound that a connection would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// The one on all.
    #[error("all {max} places are taken")]
    Total {
        /// The bound.
        max: usize,
    },
    /// The one on its address.
    #[error("this address has {max} already, and may have no more")]
    Address {
        /// The bound.
        max: usize,
    },
}

/// One connection's place.
#[derive(Debug)]
pub struct Seat {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    /// Nobody is in yet.
    pub fn new(total_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_address_max, seats: Mutex::default() })
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats that are taken now, and how many there are.
    pub fn taken(&self) -> (usize, usize) {
        (self.seats().total, self.total_max)
    }

    /// A seat for a connection from `address`.
    ///
    /// # Errors
    /// The bound that is reached; its own address's first.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Seat, Crowded> {
        let address = one_client(address);
        let mut seats = self.seats();
        let taken = seats.per_address.get(&address).copied().unwrap_or(0);
        if taken >= self.per_address_max {
            return Err(Crowded::Address { max: self.per_address_max });
        }
        if seats.total >= self.total_max {
            return Err(Crowded::Total { max: self.total_max });
        }
        seats.total += 1;
        seats.per_address.insert(address, taken + 1);
        Ok(Seat { admission: self.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.admission.seats();
        seats.total -= 1;
        if let Some(taken) = seats.per_address.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                seats.per_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: an IPv6 client has a whole /64 to choose from.
fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn seats_are_bounded_and_come_back() {
        let admission = Admission::new(3, 2);
        let first = admission.admit(ip("192.0.2.1")).unwrap();
        let _second = admission.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(admission.admit(ip("192.0.2.1")).unwrap_err(), Crowded::Address { max: 2 });
        let _other = admission.admit(ip("192.0.2.2")).unwrap();
        assert_eq!(admission.admit(ip("192.0.2.3")).unwrap_err(), Crowded::Total { max: 3 });
        drop(first);
        let again = admission.admit(ip("192.0.2.1")).unwrap();
        assert_eq!(admission.admit(ip("192.0.2.1")).unwrap_err(), Crowded::Address { max: 2 });
        drop(again);
        assert!(admission.admit(ip("192.0.2.3")).is_ok());
        assert_eq!(admission.seats().per_address.len(), 2, "the last one is gone already");
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let admission = Admission::new(9, 1);
        let _first = admission.admit(ip("2001:db8:0:1::1")).unwrap();
        assert!(admission.admit(ip("2001:db8:0:1:ffff::2")).is_err());
        assert!(admission.admit(ip("2001:db8:0:2::1")).is_ok());
    }
}
