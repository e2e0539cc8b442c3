//! A server's process: started, asked what it used, ended by its id. What it forked counts as its own.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};

use crate::figures::Sample;

/// For a server to begin to answer.
const READY: Duration = Duration::from_secs(20);
/// For a server to end by itself.
const END: Duration = Duration::from_secs(5);
/// Between two looks at memory.
const LOOK: Duration = Duration::from_millis(100);
/// For the forked processes of a server to be gone after their work, so that it has counted their time.
const SETTLE: Duration = Duration::from_millis(50);

/// A running server; ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// What it is called in the table.
    pub(crate) name: String,
}

/// What a piece of work took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// Seconds on the clock.
    pub(crate) seconds: f64,
    /// Seconds on a processor, of the server.
    pub(crate) cpu: f64,
    /// The most memory that the server had, in MiB.
    pub(crate) peak: f64,
}

impl Used {
    /// A speed: `amount` in all, in units of which one costs that many processor seconds.
    pub(crate) fn speed(&self, amount: f64, units: f64) -> Sample {
        Sample { value: amount / self.seconds, cpu: Some(self.cpu / units), peak: self.peak }
    }
}

impl Server {
    /// Starts a server; what it says goes to a file. It ends with us, and with the thread that started it.
    pub(crate) fn start(name: &str, program: &Path, arguments: &[String], log: &Path) -> io::Result<Self> {
        Self::start_with(name, program, arguments, log, &[])
    }

    /// The same, with variables of the environment.
    pub(crate) fn start_with(
        name: &str,
        program: &Path,
        arguments: &[String],
        log: &Path,
        environment: &[(&str, String)],
    ) -> io::Result<Self> {
        let said = File::create(log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()?;
        Ok(Self { child, name: name.to_owned() })
    }

    /// Waits until the server answers.
    pub(crate) fn until(&mut self, what: &str, mut answers: impl FnMut() -> bool) -> io::Result<()> {
        let begun = Instant::now();
        while !answers() {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("{} ended: {status}", self.name)));
            }
            if begun.elapsed() > READY {
                return Err(io::Error::other(format!("{} does not answer: {what}", self.name)));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Does some work with the server, and says what that took of it.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Used) {
        let root = self.child.id();
        for process in family(root) {
            // The highest mark of memory begins anew; where that is refused it is the highest since the start.
            let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
        }
        let before = on_cpu(root);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut peak = memory(root);
                while !done.load(Ordering::Relaxed) {
                    thread::park_timeout(LOOK);
                    peak = peak.max(memory(root));
                }
                peak
            });
            let begun = Instant::now();
            let result = work();
            let seconds = begun.elapsed().as_secs_f64();
            done.store(true, Ordering::Relaxed);
            watch.thread().unpark();
            let peak = watch.join().unwrap_or_default();
            thread::sleep(SETTLE);
            (result, Used { seconds, cpu: (on_cpu(root) - before).max(0.0), peak })
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Ok(id) = i32::try_from(self.child.id()) else { return };
        // All of these fail only where the process has gone already.
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < END {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process and all that it forked and that still lives.
fn family(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|process| Some((process, u32::try_from(stat(process)?.first().copied()?).ok()?)))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        at += 1;
    }
    found
}

/// The numbers of /proc/PID/stat from the fourth on (proc(5)): the parent is the first of them.
fn stat(process: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may have anything in it.
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').skip(1).map(|number| number.trim().parse().unwrap_or_default()).collect())
}

/// Seconds that a process, those that it forked, and those of them that it has waited for, were on a processor.
fn on_cpu(root: u32) -> f64 {
    // utime, stime, cutime and cstime are fields 14 to 17.
    let ticks = |process: u32| -> u64 { stat(process).map_or(0, |stat| stat.iter().skip(10).take(4).sum()) };
    let ticks: u64 = family(root).into_iter().map(ticks).sum();
    let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / second as f64
}

/// The sum of the highest marks of memory, in MiB. Pages that forked processes share count for each of them.
fn memory(root: u32) -> f64 {
    let one = |process: u32| -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    family(root).into_iter().filter_map(one).sum::<f64>() / 1024.0
}
