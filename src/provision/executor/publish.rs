//! What follows from a stored job: the boot gate, the token index, admission. Set after every commit, and anew from the
//! store at every start.

use std::sync::Arc;

use super::Executor;
use crate::{
    boot::{ArmPhase, Armed, Machine},
    machine::MacAddr,
    provision::{
        admission::{self, Caps},
        job::{GateState, Job, State, Tokens},
        step::Channel,
    },
    secret::TokenUse,
    store::Revision,
};

impl Executor {
    /// Sets gate, token index and admission from a stored job; wakes those who wait for its slot.
    /// Commits may be published in another order than they were made: of a newer one, an older one changes nothing.
    pub(super) fn publish(&self, before: Option<&Job>, job: &Job, revision: Revision) {
        let woken: Vec<String> = {
            let mut memory = self.memory();
            let newest = memory.published.get(&job.id).is_none_or(|published| *published < revision);
            if !newest {
                return;
            }
            memory.published.insert(job.id.clone(), revision);
            memory.note_end(job);
            if job.state.is_terminal() && job.settle_at.is_none() {
                memory.live.remove(&job.id);
                memory.starts.remove(&job.id);
                memory.busy.remove(&job.id);
                memory.trails.remove(&job.id);
                memory.unreachable.remove(&job.id);
            } else {
                memory.live.insert(job.id.clone(), job.clone());
            }
            if let Some(old) = before.and_then(|before| before.tokens).filter(|old| Some(*old) != job.tokens)
            {
                memory.tokens.remove(&old.report);
                memory.tokens.remove(&old.booted);
                memory.renders.remove(&old.render);
            }
            if let Some(tokens) = &job.tokens {
                memory.tokens.insert(tokens.report, (job.id.clone(), Channel::Report));
                memory.tokens.insert(tokens.booted, (job.id.clone(), Channel::Booted));
                memory.renders.insert(tokens.render, job.id.clone());
            }
            if let Some(mac) = job.mac {
                if job.state.is_terminal() {
                    if memory.macs.get(&mac).is_some_and(|of| *of == job.id) {
                        memory.macs.remove(&mac);
                    }
                } else {
                    memory.macs.insert(mac, job.id.clone());
                }
            }
            let open = job.gate != GateState::Closed;
            let concerns = job.mac.is_some()
                && (open
                    || before.is_some_and(|before| before.gate != GateState::Closed)
                    || !job.state.is_terminal());
            if let Some(mac) = job.mac.filter(|_| concerns) {
                let armed = open.then(|| Arc::new(self.armed(job, mac)));
                let machine = Machine { mac, name: job.vm_name.clone(), vm_uuid: job.vm_uuid.clone(), armed };
                self.parts.gate.update(|table| table.publish(machine));
            }
            let stalled = job.waiting.is_some() && before.is_some_and(|before| before.waiting.is_none());
            let over = job.state.is_terminal() || job.state == State::NeedsOperator;
            let ended = over && job.options.batch.is_some();
            let freed = stalled || ended || (before.is_some_and(|before| before.slot) && !job.slot);
            let none = Caps { pool: 0, host: 0 };
            let caps_of = |pool: &str| self.parts.pools.get(pool).map_or(none, |pool| pool.installs);
            let live = freed.then(|| memory.live.values()).into_iter().flatten();
            let woken = admission::next(live, caps_of, &memory.places, |batch| memory.tally_of(batch));
            woken.map(str::to_owned).collect()
        };
        for id in woken {
            self.parts.wakers.wake(&id);
        }
    }

    pub(super) fn armed(&self, job: &Job, mac: MacAddr) -> Armed {
        let token = |usage| self.parts.key.token(&job.id, job.attempt, usage);
        let files = job.profile.boot.clone().unwrap_or_else(|| crate::config::BootFiles {
            kernel: String::new(),
            initrd: Vec::new(),
            args: String::new(),
            answer: None,
            fetch: crate::config::Fetch::Http,
            seed: Vec::new(),
            files: Vec::new(),
        });
        Armed {
            job: job.id.clone(),
            attempt: job.attempt,
            vm_name: job.vm_name.clone(),
            vm_uuid: job.vm_uuid.clone(),
            mac,
            render: token(TokenUse::Render),
            report: token(TokenUse::Report),
            booted: token(TokenUse::Booted),
            files,
            profile: job.profile.name.clone(),
            variables: job.variables.clone(),
            disk: job.disk.clone(),
            xen: job.xen,
            phase: match job.gate {
                GateState::Closed | GateState::Booting => ArmPhase::Booting,
                GateState::Installing => ArmPhase::Installing,
            },
        }
    }

    pub(super) fn tokens_of(&self, job: &Job) -> Tokens {
        let hash = |usage| self.parts.key.token(&job.id, job.attempt, usage).hash();
        Tokens {
            render: hash(TokenUse::Render),
            report: hash(TokenUse::Report),
            booted: hash(TokenUse::Booted),
        }
    }
}
