//! What was rendered for an attempt, kept as long as the attempt is the same: a client that asks again, or a thousand
//! that ask at once, cost one rendering.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use hyper::body::Bytes;
use sha2::{Digest, Sha256};

use crate::{
    boot::{
        Armed,
        render::{RenderError, Templates, Urls, lint::Dialect},
    },
    http::conditional::Validator,
    machine::MacAddr,
};

/// A text, and the tag that names its bytes.
#[derive(Debug, Clone)]
pub(super) struct Rendered {
    pub(super) text: Bytes,
    pub(super) validator: Validator,
}

impl Rendered {
    pub(super) fn new(text: String) -> Self {
        let mut tag = String::from("\"");
        for byte in Sha256::digest(&text).iter().take(16) {
            let _ = write!(tag, "{byte:02x}"); // a String takes everything
        }
        tag.push('"');
        Self { text: text.into(), validator: Validator { tag, modified: None } }
    }
}

#[derive(Debug, Default)]
struct Kept {
    armed: Weak<Armed>,
    gpxe_script: Option<Rendered>,
    old_script: Option<Rendered>,
    modern_script: Option<Rendered>,
    answers: HashMap<String, Rendered>,
}

impl Kept {
    const fn script_for(&mut self, dialect: Dialect) -> &mut Option<Rendered> {
        match dialect {
            Dialect::Gpxe => &mut self.gpxe_script,
            Dialect::Ipxe2012 => &mut self.old_script,
            Dialect::Modern => &mut self.modern_script,
        }
    }
}

/// Renders, and keeps.
#[derive(Debug, Clone)]
pub(super) struct Renders {
    templates: Arc<Templates>,
    kept: Arc<Mutex<HashMap<MacAddr, Kept>>>,
}

impl Renders {
    pub(super) fn new(templates: Arc<Templates>) -> Self {
        Self { templates, kept: Arc::default() }
    }

    /// The boot script for a client of this dialect.
    pub(super) fn script(
        &self,
        armed: &Arc<Armed>,
        urls: &Urls,
        dialect: Dialect,
    ) -> Result<Rendered, RenderError> {
        if let Some(script) = self.kept(armed, |kept| kept.script_for(dialect).clone()) {
            return Ok(script);
        }
        let script = Rendered::new(self.templates.ipxe_script(armed, urls, dialect)?);
        self.kept(armed, |kept| *kept.script_for(dialect) = Some(script.clone()));
        Ok(script)
    }

    /// The answer file of this name; `Ok(None)`: the profile has none.
    pub(super) fn answer(
        &self,
        armed: &Arc<Armed>,
        urls: &Urls,
        name: &str,
    ) -> Result<Option<Rendered>, RenderError> {
        if let Some(answer) = self.kept(armed, |kept| kept.answers.get(name).cloned()) {
            return Ok(Some(answer));
        }
        let Some(text) = self.templates.render_answer_named(armed, urls, name)? else { return Ok(None) };
        let answer = Rendered::new(text);
        self.kept(armed, |kept| kept.answers.insert(name.to_owned(), answer.clone()));
        Ok(Some(answer))
    }

    /// What is kept for exactly this attempt and phase. What attempts that are over left behind goes when a new one
    /// comes: it holds their tokens.
    fn kept<T>(&self, armed: &Arc<Armed>, of: impl FnOnce(&mut Kept) -> T) -> T {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |kept: &Kept| std::ptr::eq(kept.armed.as_ptr(), Arc::as_ptr(armed));
        if !all.get(&armed.mac).is_some_and(same) {
            all.retain(|_, kept| kept.armed.strong_count() > 0);
            all.insert(armed.mac, Kept { armed: Arc::downgrade(armed), ..Kept::default() });
        }
        of(all.entry(armed.mac).or_default())
    }
}
