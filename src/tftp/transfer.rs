//! One transfer: which blocks to send when, and how it ends (RFC 1350 §2, RFC 2347-2349, RFC 7440). Pure; time is an
//! argument.
//!
//! Invariants: never more than a window is under way; before the client has answered, at most [`FIRST_SENDINGS`]
//! datagrams leave; a block is sent again when the timer says so, or once when an acknowledgement shows a hole, and
//! never because of a repeated acknowledgement (the Sorcerer's Apprentice, RFC 1123 §4.2.3.1).

use std::time::Duration;

use super::packet::{Asked, DEFAULT_BLOCK, Granted};

/// An instant, as the time since the server began.
pub type Moment = Duration;

/// Datagrams before a client has answered: a forged request is worth no more.
pub const FIRST_SENDINGS: u32 = 3;
/// What one window may hold, in bytes: bounds memory, and what a small packet makes us send.
pub const FLIGHT_BYTES: u32 = 128 << 10;
/// The first pause before something is sent again, while nothing is known of the way to the client.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Bounds of the pause before something is sent again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The least that a round trip is taken to vary (RFC 6298's clock granularity).
const JITTER: Duration = Duration::from_millis(10);
/// The longest pause that a client may ask for, in seconds; longer wishes are left out of the answer.
const TIMEOUT_LIMIT: u8 = 10;
/// Without a new acknowledgement for so long a transfer is over.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same once everything was sent: the last acknowledgement often never comes.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// What follows block 65,535. The RFCs do not say; most clients expect 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rollover {
    /// Block 0.
    #[default]
    Zero,
    /// Block 1.
    One,
}

impl Rollover {
    /// The number in the packet of a block, counted from 1.
    pub fn number(self, block: u64) -> u16 {
        let number = match self {
            Self::Zero => block % 65_536,
            Self::One if block > 65_535 => (block - 1) % 65_535 + 1,
            Self::One => block,
        };
        u16::try_from(number).unwrap_or_default() // below 65,536 in each case
    }

    /// How many blocks after `block` the nearest one with this number is.
    fn after(self, block: u64, number: u16) -> u64 {
        let (period, number) = match self {
            Self::Zero => (65_536, u64::from(number)),
            // Number 0 is only that of block 0.
            Self::One if block == 0 => return u64::from(number),
            Self::One if number == 0 => return u64::MAX,
            Self::One => (65_535, u64::from(number)),
        };
        let from = block % period;
        (number % period + period - from) % period
    }
}

/// Bounds of what is agreed with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The largest block, in bytes.
    pub block_size: u16,
    /// The largest window, in blocks.
    pub window: u16,
    /// What follows block 65,535.
    pub rollover: Rollover,
}

/// What is to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flight {
    /// The OACK.
    Options,
    /// Blocks, counted from 1, in order.
    Blocks {
        /// The first.
        first: u64,
        /// How many.
        count: u16,
    },
}

/// What follows from a packet or from time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Send this.
    Send(Flight),
    /// It is over.
    Done(Finish),
}

/// How a transfer ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The client has everything.
    Complete,
    /// Everything was sent, and the last acknowledgement never came: most likely the client has everything.
    Unconfirmed,
    /// The client answers no more.
    Lost,
    /// The client never answered at all.
    Unanswered,
}

/// The state of one transfer.
#[derive(Debug, Clone)]
pub struct Transfer {
    granted: Granted,
    block_size: u16,
    window: u16,
    rollover: Rollover,
    length: u64,
    /// Every block up to this one has arrived.
    arrived: u64,
    /// The last block of the flight that is under way; 0: the OACK is.
    sent: u64,
    /// The client has answered at least once.
    answered: bool,
    timer: Timer,
}

impl Transfer {
    /// Begins: what was asked for, the terms, and the content's length in bytes.
    pub fn begin(asked: &Asked, terms: &Terms, length: u64, now: Moment) -> (Self, Flight) {
        let granted = grant(asked, terms, length);
        let mut transfer = Self {
            granted,
            block_size: granted.block_size.unwrap_or(DEFAULT_BLOCK),
            window: granted.window.unwrap_or(1),
            rollover: terms.rollover,
            length,
            arrived: 0,
            sent: 0,
            answered: false,
            timer: Timer::new(granted.timeout, now),
        };
        let flight = if granted.is_nothing() { transfer.next_flight(now) } else { Flight::Options };
        (transfer, flight)
    }

    /// An ACK with this number.
    pub fn acknowledge(&mut self, number: u16, now: Moment) -> Step {
        if self.sent == 0 {
            // Only the OACK is under way, and block 0 acknowledges it.
            if number != 0 {
                return Step::Wait;
            }
            self.progress(now, true);
            return Step::Send(self.next_flight(now));
        }
        let new = self.rollover.after(self.arrived, number);
        if new > self.sent - self.arrived {
            return Step::Wait; // an old one, or nonsense
        }
        if new == 0 {
            return self.hole(now);
        }
        self.arrived += new;
        self.progress(now, self.arrived == self.sent);
        if self.arrived == self.last_block() {
            return Step::Done(Finish::Complete);
        }
        Step::Send(self.next_flight(now))
    }

    /// The block before the window was acknowledged again: the window's first block is missing (RFC 7440 §4), or the
    /// network doubled an ACK. With a window of one block, only the timer sends again.
    fn hole(&mut self, now: Moment) -> Step {
        if self.window == 1 || !self.timer.hurry(now) {
            return Step::Wait;
        }
        Step::Send(self.flight())
    }

    /// Time has passed.
    pub fn expire(&mut self, now: Moment) -> Step {
        if now < self.timer.deadline {
            return Step::Wait;
        }
        if !self.answered && self.timer.resent + 1 >= FIRST_SENDINGS {
            return Step::Done(Finish::Unanswered);
        }
        let all_sent = self.sent == self.last_block();
        let patience = if all_sent { LAST_PATIENCE } else { PATIENCE };
        if self.answered && self.timer.idle(now) >= patience {
            return Step::Done(if all_sent { Finish::Unconfirmed } else { Finish::Lost });
        }
        self.timer.again(now);
        Step::Send(if self.sent == 0 { Flight::Options } else { self.flight() })
    }

    /// When [`expire`](Self::expire) is to be called.
    pub const fn deadline(&self) -> Moment {
        self.timer.deadline
    }

    fn progress(&mut self, now: Moment, whole: bool) {
        self.answered = true;
        self.timer.progress(now, whole);
    }

    fn next_flight(&mut self, now: Moment) -> Flight {
        self.sent = self.last_block().min(self.arrived + u64::from(self.window));
        self.timer.sent(now);
        self.flight()
    }

    fn flight(&self) -> Flight {
        let count = u16::try_from(self.sent - self.arrived).unwrap_or(self.window);
        Flight::Blocks { first: self.arrived + 1, count }
    }

    /// The number of the last block; it is the only one that is not full, and may be empty.
    fn last_block(&self) -> u64 {
        self.length / u64::from(self.block_size) + 1
    }

    /// What the OACK says.
    pub const fn granted(&self) -> &Granted {
        &self.granted
    }

    /// What a full block holds, in bytes.
    pub const fn block_size(&self) -> u16 {
        self.block_size
    }

    /// Where the content of blocks is, as offset and length in bytes.
    pub fn span(&self, first: u64, count: u16) -> (u64, u64) {
        let size = u64::from(self.block_size);
        let from = (first.saturating_sub(1)).saturating_mul(size).min(self.length);
        let to = from.saturating_add(u64::from(count) * size).min(self.length);
        (from, to - from)
    }

    /// The number in the packet of a block, counted from 1.
    pub fn number(&self, block: u64) -> u16 {
        self.rollover.number(block)
    }

    /// What has arrived for certain, in bytes.
    pub fn bytes_arrived(&self) -> u64 {
        self.arrived.saturating_mul(u64::from(self.block_size)).min(self.length)
    }

    /// The client has answered at least once.
    pub const fn is_answered(&self) -> bool {
        self.answered
    }

    /// How long ago the client last got further.
    pub const fn idle(&self, now: Moment) -> Duration {
        self.timer.idle(now)
    }
}

/// What of the wishes is granted.
fn grant(asked: &Asked, terms: &Terms, length: u64) -> Granted {
    let block_size = asked.block_size.map(|size| size.min(terms.block_size));
    let fits = FLIGHT_BYTES / u32::from(block_size.unwrap_or(DEFAULT_BLOCK).max(1));
    let most = u16::try_from(fits).unwrap_or(u16::MAX).min(terms.window).max(1);
    Granted {
        block_size,
        window: asked.window.map(|window| window.min(most)),
        timeout: asked.timeout.filter(|seconds| *seconds <= TIMEOUT_LIMIT),
        size: asked.size.then_some(length),
    }
}

/// When to send again: after a pause that follows the measured round trip (RFC 6298), doubled each time.
#[derive(Debug, Clone)]
struct Timer {
    /// The pause that was agreed on, if one was (RFC 2349).
    agreed: Option<Duration>,
    /// The smoothed round trip, and how much it varies.
    trip: Option<(Duration, Duration)>,
    deadline: Moment,
    sent_at: Moment,
    progress_at: Moment,
    /// How often the timer sent this flight again.
    resent: u32,
    /// This flight was sent again because of a hole.
    hurried: bool,
}

impl Timer {
    fn new(agreed: Option<u8>, now: Moment) -> Self {
        let agreed = agreed.map(|seconds| Duration::from_secs(seconds.into()));
        let pause = agreed.unwrap_or(FIRST_PAUSE);
        Self {
            agreed,
            trip: None,
            deadline: now + pause,
            sent_at: now,
            progress_at: now,
            resent: 0,
            hurried: false,
        }
    }

    fn pause(&self) -> Duration {
        let measured =
            self.trip.map(|(trip, varies)| (trip + (varies * 4).max(JITTER)).clamp(PAUSES.0, PAUSES.1));
        let first = self.agreed.or(measured).unwrap_or(FIRST_PAUSE);
        (first * 2_u32.saturating_pow(self.resent.min(8))).min(PAUSES.1.max(first))
    }

    /// A new flight leaves.
    fn sent(&mut self, now: Moment) {
        self.sent_at = now;
        self.deadline = now + self.pause();
    }

    /// Something new was acknowledged: `whole`, the last thing that was sent.
    fn progress(&mut self, now: Moment, whole: bool) {
        // What was sent twice measures nothing (Karn).
        if whole && self.resent == 0 && !self.hurried {
            let sample = now.saturating_sub(self.sent_at);
            self.trip = Some(self.trip.map_or((sample, sample / 2), |(trip, varies)| {
                ((trip * 7 + sample) / 8, (varies * 3 + trip.abs_diff(sample)) / 4)
            }));
        }
        self.progress_at = now;
        self.resent = 0;
        self.hurried = false;
    }

    /// The same flight leaves again, by the timer.
    fn again(&mut self, now: Moment) {
        self.resent += 1;
        self.hurried = false;
        self.sent(now);
    }

    /// The same flight leaves again because of a hole, unless it has before. A sooner acknowledgement than half a
    /// round trip cannot be an answer to this flight: the network has doubled the one before.
    fn hurry(&mut self, now: Moment) -> bool {
        let soon = self.trip.is_some_and(|(trip, _)| now.saturating_sub(self.sent_at) < trip / 2);
        if self.hurried || soon {
            return false;
        }
        self.hurried = true;
        self.sent(now);
        true
    }

    const fn idle(&self, now: Moment) -> Duration {
        now.saturating_sub(self.progress_at)
    }
}

#[cfg(test)]
mod tests;
