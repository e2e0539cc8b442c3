//! A boot script's template, read for what firmwares lack. Pure.
//!
//! The text is taken as it would come out: both ways of a condition, each loop once, `x` for a value; but of a condition on
//! `boot.modern` only what a dialect gets. A line keeps the number that it has in the template.

use std::collections::BTreeSet;

use minijinja::machinery::ast::{Expr, Stmt};

use super::Flaw;
use crate::boot::render::lint::{Dialect, lint};

/// What a firmware would stumble over. Of one line the old firmware's word is enough.
pub(super) fn flaws(tree: &Stmt<'_>) -> Vec<Flaw> {
    let mut flaws: Vec<Flaw> = Vec::new();
    let mut told = BTreeSet::new();
    for dialect in [Dialect::Ipxe2012, Dialect::Modern] {
        let mut text = Text { dialect, out: String::new(), lines: Vec::new(), at: 1 };
        text.statement(tree);
        for finding in lint(&text.out, dialect) {
            let line = text.lines.get(finding.line.saturating_sub(1)).copied().unwrap_or(text.at);
            if !told.contains(&line) {
                flaws.push(Flaw { line, problem: finding.problem });
            }
        }
        told.extend(flaws.iter().map(|flaw| flaw.line));
    }
    flaws
}

struct Text {
    dialect: Dialect,
    out: String,
    /// The template's line of each whole line of `out`.
    lines: Vec<usize>,
    /// The template's line of what is being written.
    at: usize,
}

impl Text {
    fn statement(&mut self, statement: &Stmt<'_>) {
        match statement {
            Stmt::Template(found) => self.all(&found.children),
            Stmt::EmitRaw(found) => {
                self.at = usize::from(found.span().start_line).max(1);
                for piece in found.raw.split_inclusive('\n') {
                    self.out.push_str(piece);
                    if piece.ends_with('\n') {
                        self.lines.push(self.at);
                        self.at += 1;
                    }
                }
            }
            Stmt::EmitExpr(found) => {
                let url = matches!(&found.expr, Expr::GetAttr(fact) if fact.name == "kernel_url");
                self.out.push_str(if url { "http://x/x" } else { "x" });
            }
            Stmt::IfCond(found) => {
                let on_modern = matches!(&found.expr, Expr::GetAttr(fact) if fact.name == "modern");
                if !on_modern || self.dialect == Dialect::Modern {
                    self.all(&found.true_body);
                }
                if !on_modern || self.dialect != Dialect::Modern {
                    self.all(&found.false_body);
                }
            }
            Stmt::ForLoop(found) => self.all(&found.body),
            Stmt::WithBlock(found) => self.all(&found.body),
            Stmt::AutoEscape(found) => self.all(&found.body),
            Stmt::FilterBlock(found) => self.all(&found.body),
            Stmt::Block(found) => self.all(&found.body),
            Stmt::Set(_)
            | Stmt::SetBlock(_)
            | Stmt::Import(_)
            | Stmt::FromImport(_)
            | Stmt::Extends(_)
            | Stmt::Include(_)
            | Stmt::Macro(_)
            | Stmt::CallBlock(_)
            | Stmt::Do(_) => {}
        }
    }

    fn all(&mut self, statements: &[Stmt<'_>]) {
        statements.iter().for_each(|statement| self.statement(statement));
    }
}
