//! Keeps BBR from pausing in the middle of a transfer.
//!
//! A connection that has seen no shorter round trip for ten seconds carries next to nothing for 200 ms and a round trip
//! (PROBE_RTT, draft-cardwell-iccrg-bbr-congestion-control-00, section 4.3.5), so that queues empty and a path that has become longer
//! is noticed. To a file over 2 x (100 Mbit/s, 150 ms) that costs 7 % of what the paths carry, and its client a stall of
//! 0.4 s. Nothing of it is needed while the connection is as quick as it was. So BBR begins anew in time: it takes the
//! shortest round trip from TCP, which remembers it for five minutes, keeps its window, and is held at the bandwidth that
//! it knew until it has seen that there is no more, as its STARTUP would send 2.9 times as much.
//!
//! A path that falls silent would have it pause as it comes back, if the ten seconds are over by then. With the first
//! acknowledgement it is too late, and after a retransmission timeout the window is gone; so it begins anew as soon as
//! acknowledgements fail to come.
//!
//! A connection that has just been made is `startup`'s until BBR has settled.
//!
//! In: when bytes are sent, or wait to be, and what the kernel says of the connection. Out: what is to be done with it. Called by
//! `socket`. No I/O, no clock. Invariants: a connection with a queue in front of it, or without enough to send, is left
//! alone; what holds it back is lifted once BBR has settled.

use std::time::Duration;

use super::{
    TcpInfo,
    bbr::BbrInfo,
    startup::{Look, Startup},
};
use crate::exec::Instant;

/// BBR pauses if it has seen no shorter round trip for so long: bbr_min_rtt_win_sec of net/ipv4/tcp_bbr.c.
const EVERY: Duration = Duration::from_secs(10);
/// It begins anew so long before: time for a connection that has too little to send now and then.
const LEAD: Duration = Duration::from_secs(1);
/// The kernel is asked so often meanwhile: each round trip of short paths, at the cost of some microseconds.
const LOOK: Duration = Duration::from_millis(50);
/// A connection over which nothing was sent for so long was idle: if the ten seconds are over by then, BBR measures anew as it goes
/// on, without a pause.
const IDLE_MIN: Duration = Duration::from_millis(150);
/// How long a pause takes on paths of ordinary length.
const PAUSE: Duration = Duration::from_millis(300);
/// A round trip of this many of the shortest ones, and this, is one with a queue. The window of BBR holds two.
const QUEUED_RATIO: f64 = 1.5;
const QUEUED_MIN: Duration = Duration::from_millis(5);
/// A window that holds less of what the path does is that of a connection which pauses, or has just lost a lot.
const WINDOW_SHARE_MIN: f64 = 0.8;

/// No acknowledgement for so long, while some are due: the path is silent. The retransmission timer fires no sooner than
/// 200 ms after the last one (TCP_RTO_MIN of net/tcp.h).
const SILENT: Duration = Duration::from_millis(150);
/// The kernel is asked about that if BBR has waited for a shorter round trip for so long: otherwise a silence would have to
/// last for six seconds to end in a pause, and who waits for that does not mind the pause.
const SILENCE_MATTERS: Duration = Duration::from_secs(4);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// BBR is to begin anew, and to send no more than so many bytes a second meanwhile.
    BeginAnew { bandwidth: u64 },
    /// It is to send no more than so many bytes a second.
    Hold { bandwidth: u64 },
    /// It may send what it finds.
    Release,
}

/// See the module's description. The default is that of a connection that has just been made.
#[derive(Debug)]
pub(super) struct Renewal {
    /// None once BBR has settled for the first time.
    startup: Option<Startup>,
    /// When BBR began to wait for a shorter round trip, as far as can be known.
    measured: Option<Instant>,
    sent: Option<Instant>,
    looked: Option<Instant>,
    is_held: bool,
    /// Nothing was under way, or it is too late: silence means nothing until more is sent.
    is_quiet: bool,
    is_over: bool,
}

impl Default for Renewal {
    fn default() -> Self {
        Self {
            startup: Some(Startup::default()),
            measured: None,
            sent: None,
            looked: None,
            is_held: false,
            is_quiet: false,
            is_over: false,
        }
    }
}

impl Renewal {
    /// Nothing will ever be done.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Bytes are sent. Returns whether the kernel is to be asked how the connection stands.
    pub(super) fn sends(&mut self, now: Instant) -> bool {
        let before = self.sent.replace(now).unwrap_or(now);
        self.is_quiet = false;
        let was_idle = now.saturating_duration_since(before) > IDLE_MIN;
        let measured = *self.measured.get_or_insert(now);
        let age = now.saturating_duration_since(measured);
        if age > EVERY {
            // It was busy, and has paused; or it does so no more soon.
            self.measured = Some(if was_idle || age > 2 * EVERY { now } else { measured + EVERY + PAUSE });
        }
        if let Some(startup) = &mut self.startup {
            return startup.sends(now);
        }
        let may_look = self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK);
        let looks = may_look && (self.is_held || (EVERY - LEAD..=EVERY).contains(&age));
        if looks {
            self.looked = Some(now);
        }
        looks
    }

    /// The sender waits. Returns after how long the kernel is to be asked whether the path is silent, if nothing was sent until
    /// then.
    pub(super) fn waits(&self, now: Instant) -> Option<Duration> {
        let measured = self.measured?;
        let age = now.saturating_duration_since(measured);
        let is_worth_it = !self.is_over && !self.is_held && !self.is_quiet;
        (is_worth_it && (SILENCE_MATTERS..=EVERY).contains(&age)).then_some(LOOK)
    }

    /// How the connection stands after that.
    pub(super) fn looks_for_silence(
        &mut self,
        now: Instant,
        tcp: &TcpInfo,
        bbr: Option<BbrInfo>,
    ) -> Option<Order> {
        let is_silent = tcp.since_acknowledged >= SILENT && tcp.unacknowledged > 0;
        self.is_quiet = tcp.unacknowledged == 0 || tcp.is_recovering_from_timeout;
        if !is_silent || self.is_quiet {
            return None;
        }
        self.looks(now, tcp, bbr)
    }

    /// How the connection stands; `bbr` is `None` if it does not use BBR.
    pub(super) fn looks(&mut self, now: Instant, tcp: &TcpInfo, bbr: Option<BbrInfo>) -> Option<Order> {
        let Some(bbr) = bbr else {
            self.is_over = true;
            return std::mem::take(&mut self.is_held).then_some(Order::Release);
        };
        if let Some(startup) = &mut self.startup {
            return match startup.looks(now, tcp, bbr) {
                Look::Starting(bound) => bound.map(|bandwidth| Order::Hold { bandwidth }),
                Look::Settled(was_bounded) => {
                    self.startup = None;
                    was_bounded.then_some(Order::Release)
                }
            };
        }
        if self.is_held {
            self.is_held = bbr.is_starting;
            return (!self.is_held).then_some(Order::Release);
        }
        let holds = bbr.bandwidth as f64 * bbr.round_trip.as_secs_f64();
        let window = u64::from(tcp.congestion_window) * u64::from(tcp.segment_bytes);
        let is_queued = tcp.rtt > tcp.rtt_min.mul_f64(QUEUED_RATIO) + QUEUED_MIN;
        // What begins anew in the middle of a recovery goes on with what is under way as its window.
        let under_way = f64::from(tcp.unacknowledged) * f64::from(tcp.segment_bytes);
        let may_begin = bbr.bandwidth > 0
            && under_way >= WINDOW_SHARE_MIN * holds
            && !bbr.is_starting
            && !tcp.is_app_limited
            && !is_queued
            && window as f64 >= WINDOW_SHARE_MIN * holds;
        may_begin.then(|| {
            (self.measured, self.is_held) = (Some(now), true);
            Order::BeginAnew { bandwidth: bbr.bandwidth }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(100);
    /// 50 Mbit/s.
    const BANDWIDTH: u64 = 6_250_000;
    const STEP: Duration = Duration::from_millis(10);

    /// A connection that fills its path.
    struct Connection {
        renewal: Renewal,
        now: Instant,
        begun: Instant,
        tcp: TcpInfo,
        bbr: BbrInfo,
        orders: Vec<(Duration, Order)>,
    }

    impl Connection {
        fn new() -> Self {
            let now = Instant::now();
            let tcp = TcpInfo {
                rtt: ROUND_TRIP,
                rtt_min: ROUND_TRIP,
                congestion_window: 900,
                segment_bytes: 1448,
                unacknowledged: 600,
                ..TcpInfo::default()
            };
            let bbr = BbrInfo { bandwidth: BANDWIDTH, round_trip: ROUND_TRIP, is_starting: false };
            Self { renewal: Renewal::default(), now, begun: now, tcp, bbr, orders: Vec::new() }
        }

        /// Sends for so long; BBR settles within four round trips.
        fn send(&mut self, time: Duration) {
            let until = self.now + time;
            while self.now < until {
                self.now += STEP;
                if !self.renewal.sends(self.now) {
                    continue;
                }
                let last = self.orders.last();
                let is_starting = last.is_some_and(|&(at, order)| {
                    order != Order::Release && self.now < self.begun + at + 4 * ROUND_TRIP
                });
                let bbr = BbrInfo { is_starting: is_starting || self.bbr.is_starting, ..self.bbr };
                if let Some(order) = self.renewal.looks(self.now, &self.tcp, Some(bbr)) {
                    self.orders.push((self.now - self.begun, order));
                }
            }
        }

        fn begins(&self) -> Vec<Duration> {
            self.orders.iter().filter(|(_, order)| *order != Order::Release).map(|&(at, _)| at).collect()
        }
    }

    #[test]
    fn a_busy_connection_begins_anew_before_each_pause_and_is_held_meanwhile() {
        let mut connection = Connection::new();
        connection.send(Duration::from_secs(60));
        let begins = connection.begins();
        assert!(begins.len() >= 6 && begins[0] > Duration::from_secs(8), "{begins:?}");
        assert!(begins.windows(2).all(|pair| pair[1] - pair[0] < EVERY), "{begins:?}");
        for pair in connection.orders.chunks(2) {
            assert_eq!(pair[0].1, Order::BeginAnew { bandwidth: BANDWIDTH });
            if let Some(&(at, order)) = pair.get(1) {
                assert_eq!(order, Order::Release);
                assert!(at - pair[0].0 < 4 * ROUND_TRIP + 2 * LOOK, "{pair:?}");
            }
        }
    }

    #[test]
    fn it_is_left_alone_with_a_queue_without_work_while_it_starts_and_as_it_pauses() {
        let changes: [fn(&mut Connection); 6] = [
            |connection| connection.tcp.rtt = 2 * ROUND_TRIP,
            |connection| connection.tcp.is_app_limited = true,
            |connection| connection.bbr.is_starting = true,
            |connection| connection.bbr.bandwidth = 0,
            |connection| connection.tcp.congestion_window = 4,
            |connection| connection.tcp.unacknowledged = 200,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut connection = Connection::new();
            change(&mut connection);
            connection.send(Duration::from_secs(30));
            assert_eq!(connection.orders, [], "{number}");
        }
    }

    #[test]
    fn one_that_had_too_little_to_send_begins_anew_as_soon_as_it_has_enough() {
        let mut connection = Connection::new();
        connection.tcp.is_app_limited = true;
        connection.send(Duration::from_millis(9500));
        connection.tcp.is_app_limited = false;
        connection.send(Duration::from_millis(100));
        assert_eq!(connection.begins().len(), 1);
    }

    #[test]
    fn one_that_was_idle_when_the_pause_was_due_has_ten_more_seconds() {
        let mut connection = Connection::new();
        connection.send(Duration::from_secs(5));
        connection.now += Duration::from_secs(7);
        connection.send(Duration::from_millis(8900));
        assert_eq!(connection.begins(), []);
        connection.send(Duration::from_millis(300));
        assert_eq!(connection.begins().len(), 1);
    }

    /// The sender waits, and nothing is acknowledged for so long.
    fn falls_silent(connection: &mut Connection, silence: Duration) -> Option<Order> {
        let wait = connection.renewal.waits(connection.now)?;
        connection.now += wait;
        let tcp = TcpInfo { since_acknowledged: silence, unacknowledged: 900, ..connection.tcp };
        connection.renewal.looks_for_silence(connection.now, &tcp, Some(connection.bbr))
    }

    #[test]
    fn one_that_falls_silent_late_begins_anew_before_its_timer_fires() {
        let mut connection = Connection::new();
        connection.send(Duration::from_secs(3));
        assert_eq!(falls_silent(&mut connection, SILENT), None, "seven seconds are a long silence");
        connection.send(Duration::from_secs(3));
        assert_eq!(falls_silent(&mut connection, SILENT / 3), None, "it is full, and moves");
        connection.tcp.is_recovering_from_timeout = true;
        assert_eq!(falls_silent(&mut connection, 2 * SILENT), None, "its window is gone");
        assert_eq!(connection.renewal.waits(connection.now), None);
        connection.tcp.is_recovering_from_timeout = false;
        connection.send(2 * STEP);
        let anew = Some(Order::BeginAnew { bandwidth: BANDWIDTH });
        assert_eq!(falls_silent(&mut connection, SILENT), anew);
        assert_eq!(falls_silent(&mut connection, 2 * SILENT), None, "once");
        assert!(connection.renewal.is_held, "until it has come up to speed again");
    }

    #[test]
    fn without_bbr_nothing_is_asked_again() {
        let mut connection = Connection::new();
        assert!(connection.renewal.sends(connection.now));
        assert_eq!(connection.renewal.looks(connection.now, &connection.tcp, None), None);
        assert!(connection.renewal.is_over());
    }
}
