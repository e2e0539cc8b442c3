//! The demo's child processes: the server, which is killed and started again, and commands that end by themselves.
//!
//! Invariant: no child outlives the demo, however that ends. Each is started through `bootflip demo --child-of`,
//! which asks the kernel for a SIGKILL at the demo's end ([`become_child`]) and then becomes the command itself.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::{Pid, getppid},
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// A child could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It did not start.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its log.
    #[error("cannot write {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody could tell how it ended.
    #[error("cannot wait for a child process")]
    Wait(#[source] io::Error),
    /// The kernel does not bind its life to the demo's.
    #[error("cannot bind this process to the demo's life")]
    Bind(#[source] nix::Error),
    /// The demo ended before its child began.
    #[error("the demo with process id {0} is gone")]
    Orphan(i32),
}

/// Makes this process the command `arguments` of `program`, which is killed when the process `parent`, its own
/// parent, ends. Returns only when that cannot be.
pub fn become_child(program: &Path, parent: i32, arguments: &[OsString]) -> Result<Infallible, ChildError> {
    set_pdeathsig(Signal::SIGKILL).map_err(ChildError::Bind)?;
    // Who was orphaned before the line above gets no signal any more.
    if getppid() != Pid::from_raw(parent) {
        return Err(ChildError::Orphan(parent));
    }
    let source = std::process::Command::new(program).args(arguments).exec();
    Err(ChildError::Spawn { program: program.to_owned(), source })
}

/// How the demo runs the shipped binary.
#[derive(Debug, Clone)]
pub struct Program {
    /// The binary.
    pub path: PathBuf,
    /// The configuration that the demo wrote.
    pub config: PathBuf,
    /// Where the children's output goes.
    pub logs: PathBuf,
}

impl Program {
    /// Starts `bootflip ARGUMENTS -c CONFIG`; what it says is added to `<name>.log`, its result to `<name>.out`. It
    /// dies with the handle, and with the demo. To be called on the thread that lives as long as the demo: the
    /// kernel takes the end of the thread that started a child for the end of its parent.
    pub fn spawn(&self, arguments: &[&str], name: &str) -> Result<Child, ChildError> {
        let (result, log) = (append(&self.result(name))?, append(&self.log(name))?);
        Command::new(&self.path)
            .args(["demo", "--child-of", &std::process::id().to_string(), "--"])
            .args(arguments)
            .arg("-c")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(result)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ChildError::Spawn { program: self.path.clone(), source })
    }

    /// The file that a child's result goes to.
    pub fn result(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.out"))
    }

    /// The file that a child's log goes to.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

fn append(path: &Path) -> Result<File, ChildError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|source| ChildError::Log { path: path.to_owned(), source })
}

/// The server's process, while there is one.
#[derive(Debug)]
pub struct Server {
    program: Program,
    child: Option<Child>,
    /// How often it was killed.
    pub kills: u32,
}

impl Server {
    /// Starts it.
    pub fn start(program: Program) -> Result<Self, ChildError> {
        let mut server = Self { program, child: None, kills: 0 };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again after a kill.
    pub fn restart(&mut self) -> Result<(), ChildError> {
        self.child = Some(self.program.spawn(&["serve"], "serve")?);
        Ok(())
    }

    /// There is a process, as far as we know.
    pub const fn is_up(&self) -> bool {
        self.child.is_some()
    }

    /// SIGKILL; it is gone when this returns.
    pub async fn kill(&mut self) -> Result<(), ChildError> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.map_err(ChildError::Wait)?;
            self.kills += 1;
        }
        Ok(())
    }

    /// How it ended, when it ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// SIGTERM, and SIGKILL when it takes longer than it may. True: it ended by itself, with success.
    pub async fn stop(&mut self) -> Result<bool, ChildError> {
        let Some(mut child) = self.child.take() else { return Ok(true) };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        match timeout(STOP_TIME, child.wait()).await {
            Ok(status) => status.map(|status| status.success()).map_err(ChildError::Wait),
            Err(_) => child.kill().await.map(|()| false).map_err(ChildError::Wait),
        }
    }
}

/// The last lines of a log, for an error message.
pub fn tail(path: &Path) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
}

/// The server promises to end within 20 s of SIGTERM.
const STOP_TIME: Duration = Duration::from_secs(20);
const TAIL_LINES: usize = 15;
