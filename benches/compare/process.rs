//! A server's process: started, asked what it used, ended by its id. What it forked counts as its own.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
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
/// Between two looks at its processes.
const LOOK: Duration = Duration::from_millis(20);
/// For what a server does when its work is done.
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
        let mut before = Seen::default();
        before.look(root);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let (mut seen, mut peak) = (Seen::default(), memory(root));
                while !done.load(Ordering::Relaxed) {
                    thread::park_timeout(LOOK);
                    seen.look(root);
                    peak = peak.max(memory(root));
                }
                thread::sleep(SETTLE);
                seen.look(root);
                (seen, peak)
            });
            let begun = Instant::now();
            let result = work();
            let seconds = begun.elapsed().as_secs_f64();
            done.store(true, Ordering::Relaxed);
            watch.thread().unpark();
            let (seen, peak) = watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (result, Used { seconds, cpu: seen.since(&before).max(0.0), peak })
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

/// A process and all that it forked and that still lives. What is forked gets a higher number than what forks it.
fn family(root: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten();
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut younger: Vec<u32> = numbers.filter(|number| *number > root).collect();
    younger.sort_unstable();
    let mut found = vec![root];
    for process in younger {
        let parent = fields(process, 4).first().copied();
        if parent.is_some_and(|parent| found.iter().any(|known| f64::from(*known) == parent)) {
            found.push(process);
        }
    }
    found
}

/// The numbers of /proc/PID/stat from field `first` on; it is behind the name, which is the second (proc(5)).
fn fields(process: u32, first: usize) -> Vec<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').skip(first - 3).map(|number| number.trim().parse().unwrap_or_default()).collect()
}

/// The folders of a process's threads.
fn tasks(process: u32) -> impl Iterator<Item = PathBuf> {
    let folder = fs::read_dir(format!("/proc/{process}/task"));
    folder.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// What each process of a family was on a processor, in seconds, when it was last seen. tftpd-hpa does not wait for
/// what it forks, so that nobody but an onlooker learns what that used.
#[derive(Debug, Default)]
struct Seen(HashMap<u32, f64>);

impl Seen {
    fn look(&mut self, root: u32) {
        for process in family(root) {
            let before = self.0.entry(process).or_default();
            *before = before.max(on_cpu(process));
        }
    }

    /// What was used since `before`.
    fn since(&self, before: &Self) -> f64 {
        self.0.iter().map(|(process, now)| now - before.0.get(process).copied().unwrap_or_default()).sum()
    }
}

/// Seconds that a process was on a processor: as its threads say (to the nanosecond, without those that have ended),
/// or as it says (with them, in ticks of 10 ms); what is more.
fn on_cpu(process: u32) -> f64 {
    let thread = |task: PathBuf| -> Option<f64> {
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    let threads = tasks(process).filter_map(thread).sum::<f64>() / 1e9;
    // Field 14 and 15 are utime and stime.
    let ticks: f64 = fields(process, 14).into_iter().take(2).sum();
    let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    threads.max(ticks / second as f64)
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
