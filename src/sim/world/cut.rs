//! One crash and one lost reply, at one named place: effect × point × reply. The crash sweep walks all of them.

use super::storm::Fate;
use crate::{
    provision::{Effect, Job},
    xen::Method,
};

/// Where the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// The intent is not stored yet.
    BeforeIntent,
    /// The intent is stored.
    AfterIntent,
    /// The effect's call went out (and its fate is the cell's reply); the answer is not looked at.
    AfterCall,
    /// The effect holds, and that is not stored yet.
    BeforeOutcome,
}

/// What becomes of the effect's first call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reply {
    /// Done and answered.
    Ok,
    /// Not done, not answered.
    LostBefore,
    /// Done, not answered.
    LostAfter,
}

impl Point {
    /// All four.
    pub const ALL: [Self; 4] = [Self::BeforeIntent, Self::AfterIntent, Self::AfterCall, Self::BeforeOutcome];
}

impl Reply {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Ok, Self::LostBefore, Self::LostAfter];
}

/// What happens at a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtCommit {
    /// It is done.
    Goes,
    /// The server dies, and it is not done.
    DiesBefore,
    /// It is done, and the server dies.
    DiesAfter,
}

/// The place, and whether it was hit.
#[derive(Debug, Clone)]
pub struct Cut {
    /// In which effect.
    pub effect: Effect,
    /// Where in it.
    pub point: Point,
    /// With which reply.
    pub reply: Reply,
    /// The crash happened.
    pub crashed: bool,
    /// The reply had its fate.
    pub replied: bool,
}

impl Cut {
    /// A cut that waits for its place.
    pub const fn new(effect: Effect, point: Point, reply: Reply) -> Self {
        Self { effect, point, reply, crashed: false, replied: false }
    }

    /// Both happened.
    pub const fn hit(&self) -> bool {
        self.crashed && self.replied
    }

    /// The fate of a call, with the job as it is stored.
    pub fn fate(&mut self, method: Method, job: Option<&Job>) -> Fate {
        let at = job.and_then(|job| job.intent).is_some_and(|intent| intent.effect == self.effect);
        if !at || self.replied || !is_the_call(self.effect, method) {
            return Fate::Done;
        }
        self.replied = true;
        if self.point == Point::AfterCall && !self.crashed {
            self.crashed = true;
            return match self.reply {
                Reply::Ok => Fate::DiesWithReply,
                Reply::LostBefore => Fate::DiesBefore,
                Reply::LostAfter => Fate::DiesAfter,
            };
        }
        match self.reply {
            Reply::Ok => Fate::Done,
            Reply::LostBefore => Fate::LostBefore,
            Reply::LostAfter => Fate::LostAfter,
        }
    }

    /// What happens when `next` is stored over `before`.
    pub fn commit(&mut self, before: Option<&Job>, next: &Job) -> AtCommit {
        if self.crashed {
            return AtCommit::Goes;
        }
        let intent = |job: &Job| job.intent.map(|intent| intent.effect);
        let was = before.and_then(intent);
        let stores_intent = intent(next) == Some(self.effect) && was != Some(self.effect);
        let stores_outcome = was == Some(self.effect) && intent(next) != Some(self.effect);
        let what = match self.point {
            Point::BeforeIntent if stores_intent => AtCommit::DiesBefore,
            Point::AfterIntent if stores_intent => AtCommit::DiesAfter,
            Point::BeforeOutcome if stores_outcome => AtCommit::DiesBefore,
            Point::BeforeIntent | Point::AfterIntent | Point::AfterCall | Point::BeforeOutcome => {
                AtCommit::Goes
            }
        };
        self.crashed = what != AtCommit::Goes;
        what
    }
}

/// The call that brings the effect about; for those that change nothing on the pool, the look at the VM.
fn is_the_call(effect: Effect, method: Method) -> bool {
    match effect {
        Effect::Preflight | Effect::Arm | Effect::Completion | Effect::Evidence => {
            method == Method::VmGetRecord
        }
        Effect::Claim
        | Effect::Sync
        | Effect::Stop
        | Effect::Actions
        | Effect::Order
        | Effect::Flip
        | Effect::Start
        | Effect::Disarm
        | Effect::Restore
        | Effect::StartPv
        | Effect::Release => method.changes_the_pool(),
    }
}
