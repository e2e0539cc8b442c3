//! Goes through a template's tree. Pure; what is known comes from `check`.
//!
//! A value is of people when it comes from `vars` or is the VM's name; so is what is made of one, until a filter that
//! escapes. What a block or a macro gives is a text of the template's own: what went into it was looked at there.

#![allow(clippy::wildcard_enum_match_arm)] // the engine's enums, of which a few variants matter

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Macro, Stmt};

use super::{Checker, FACTS, FUNCTIONS, Flaw, Kind, Place};
use crate::boot::render::filters::ESCAPES;

/// All flaws but those of a firmware.
pub(super) fn flaws(checker: &Checker, name: &str, kind: Kind, tree: &Stmt<'_>) -> Vec<Flaw> {
    let mut walk = Walk {
        checker,
        kind,
        flaws: Vec::new(),
        scopes: vec![BTreeMap::new()],
        captured: 0,
        there: Vec::new(),
        line: String::new(),
        section: String::new(),
    };
    for handed_on in checker.handed_on.get(name).into_iter().flatten() {
        walk.define(handed_on, false);
    }
    walk.statement(tree);
    walk.flaws
}

/// The names that a template sets, and the templates that it includes.
pub(super) fn exports(tree: &Stmt<'_>) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut set, mut included) = (BTreeSet::new(), BTreeSet::new());
    gather(tree, &mut set, &mut included);
    (set, included)
}

fn gather(statement: &Stmt<'_>, set: &mut BTreeSet<String>, included: &mut BTreeSet<String>) {
    match statement {
        Stmt::Set(found) => set.extend(targets(&found.target)),
        Stmt::SetBlock(found) => set.extend(targets(&found.target)),
        Stmt::Macro(found) => {
            set.insert(found.name.to_owned());
        }
        Stmt::Import(found) => set.extend(targets(&found.name)),
        Stmt::FromImport(found) => set.extend(imported(&found.names)),
        Stmt::Include(found) => included.extend(constant(&found.name)),
        Stmt::Template(_)
        | Stmt::EmitExpr(_)
        | Stmt::EmitRaw(_)
        | Stmt::ForLoop(_)
        | Stmt::IfCond(_)
        | Stmt::WithBlock(_)
        | Stmt::AutoEscape(_)
        | Stmt::FilterBlock(_)
        | Stmt::Block(_)
        | Stmt::Extends(_)
        | Stmt::CallBlock(_)
        | Stmt::Do(_) => {}
    }
    for body in bodies(statement) {
        body.iter().for_each(|inner| gather(inner, set, included));
    }
}

/// The statements within a statement.
fn bodies<'t, 's>(statement: &'t Stmt<'s>) -> Vec<&'t [Stmt<'s>]> {
    match statement {
        Stmt::Template(found) => vec![&found.children],
        Stmt::ForLoop(found) => vec![&found.body, &found.else_body],
        Stmt::IfCond(found) => vec![&found.true_body, &found.false_body],
        Stmt::WithBlock(found) => vec![&found.body],
        Stmt::SetBlock(found) => vec![&found.body],
        Stmt::AutoEscape(found) => vec![&found.body],
        Stmt::FilterBlock(found) => vec![&found.body],
        Stmt::Block(found) => vec![&found.body],
        Stmt::Macro(found) => vec![&found.body],
        Stmt::CallBlock(found) => vec![&found.macro_decl.body],
        Stmt::EmitExpr(_)
        | Stmt::EmitRaw(_)
        | Stmt::Set(_)
        | Stmt::Import(_)
        | Stmt::FromImport(_)
        | Stmt::Extends(_)
        | Stmt::Include(_)
        | Stmt::Do(_) => Vec::new(),
    }
}

fn constant(expression: &Expr<'_>) -> Option<String> {
    expression.as_const().and_then(|value| value.as_str().map(str::to_owned))
}

fn imported(names: &[(Expr<'_>, Option<Expr<'_>>)]) -> Vec<String> {
    names.iter().flat_map(|(name, alias)| targets(alias.as_ref().unwrap_or(name))).collect()
}

/// The names that an assignment sets.
fn targets(target: &Expr<'_>) -> Vec<String> {
    match target {
        Expr::Var(var) => vec![var.id.to_owned()],
        Expr::List(list) => list.items.iter().flat_map(targets).collect(),
        Expr::Tuple(tuple) => tuple.items.iter().flat_map(targets).collect(),
        Expr::Const(_)
        | Expr::Slice(_)
        | Expr::UnaryOp(_)
        | Expr::BinOp(_)
        | Expr::Compare(_)
        | Expr::IfExpr(_)
        | Expr::Filter(_)
        | Expr::Test(_)
        | Expr::GetAttr(_)
        | Expr::GetItem(_)
        | Expr::Call(_)
        | Expr::Map(_) => Vec::new(),
    }
}

struct Walk<'a> {
    checker: &'a Checker,
    kind: Kind,
    flaws: Vec<Flaw>,
    /// Names, and whether what they hold is of people.
    scopes: Vec<BTreeMap<String, bool>>,
    /// How many blocks and macros deep: what they give goes elsewhere.
    captured: usize,
    /// Variables that a condition around has found to be set.
    there: Vec<String>,
    /// The line that is being written, so far.
    line: String,
    /// The section of a kickstart; empty: its commands.
    section: String,
}

impl Walk<'_> {
    fn flaw(&mut self, line: u16, problem: String) {
        self.flaws.push(Flaw { line: usize::from(line).max(1), problem });
    }

    fn define(&mut self, name: &str, of_people: bool) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), of_people);
        }
    }

    fn local(&self, name: &str) -> Option<bool> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    fn within(&mut self, body: &[Stmt<'_>]) {
        self.scopes.push(BTreeMap::new());
        body.iter().for_each(|inner| self.statement(inner));
        self.scopes.pop();
    }

    /// What a block or macro gives, which begins lines of its own.
    fn capture(&mut self, body: &[Stmt<'_>]) {
        let line = std::mem::take(&mut self.line);
        self.captured += 1;
        self.within(body);
        self.captured -= 1;
        self.line = line;
    }

    fn statement(&mut self, statement: &Stmt<'_>) {
        match statement {
            Stmt::Template(found) => found.children.iter().for_each(|inner| self.statement(inner)),
            Stmt::EmitRaw(found) => self.raw(found.raw),
            Stmt::EmitExpr(found) => {
                self.expression(&found.expr);
                self.emitted(&found.expr);
                self.line.push('x');
            }
            Stmt::ForLoop(found) => {
                self.expression(&found.iter);
                let of_people = self.of_people(&found.iter);
                self.scopes.push(BTreeMap::from([("loop".to_owned(), false)]));
                targets(&found.target).iter().for_each(|name| self.define(name, of_people));
                found.filter_expr.iter().for_each(|filter| self.expression(filter));
                found.body.iter().for_each(|inner| self.statement(inner));
                self.scopes.pop();
                self.within(&found.else_body);
            }
            Stmt::IfCond(found) => {
                self.expression(&found.expr);
                let there = found_there(&found.expr);
                there.iter().for_each(|variable| self.there.push((*variable).to_owned()));
                found.true_body.iter().for_each(|inner| self.statement(inner));
                self.there.truncate(self.there.len() - there.len());
                found.false_body.iter().for_each(|inner| self.statement(inner));
            }
            Stmt::WithBlock(found) => {
                self.scopes.push(BTreeMap::new());
                found.assignments.iter().for_each(|(target, value)| self.assign(target, value));
                found.body.iter().for_each(|inner| self.statement(inner));
                self.scopes.pop();
            }
            Stmt::Set(found) => self.assign(&found.target, &found.expr),
            Stmt::SetBlock(found) => {
                self.capture(&found.body);
                found.filter.iter().for_each(|filter| self.expression(filter));
                targets(&found.target).iter().for_each(|name| self.define(name, false));
            }
            Stmt::AutoEscape(found) => self.within(&found.body),
            Stmt::FilterBlock(found) => {
                self.capture(&found.body);
                self.expression(&found.filter);
            }
            Stmt::Block(found) => self.within(&found.body),
            Stmt::Macro(found) => {
                self.define(found.name, false);
                self.macro_body(found);
            }
            Stmt::CallBlock(found) => {
                self.expression(&found.call.expr);
                self.arguments(&found.call.args);
                self.macro_body(&found.macro_decl);
            }
            Stmt::Do(found) => {
                self.expression(&found.call.expr);
                self.arguments(&found.call.args);
            }
            Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                self.other(statement)
            }
        }
    }

    /// A statement that names another template.
    fn other(&mut self, statement: &Stmt<'_>) {
        match statement {
            Stmt::Import(found) => {
                self.names_template(&found.expr);
                targets(&found.name).iter().for_each(|name| self.define(name, false));
            }
            Stmt::FromImport(found) => {
                self.names_template(&found.expr);
                imported(&found.names).iter().for_each(|name| self.define(name, false));
            }
            Stmt::Extends(found) => self.names_template(&found.name),
            Stmt::Include(found) if !found.ignore_missing => self.names_template(&found.name),
            _ => {}
        }
    }

    fn macro_body(&mut self, found: &Macro<'_>) {
        found.defaults.iter().for_each(|default| self.expression(default));
        self.scopes.push(BTreeMap::from([("caller".to_owned(), false)]));
        found.args.iter().flat_map(targets).for_each(|name| self.define(&name, true));
        self.capture(&found.body);
        self.scopes.pop();
    }

    fn assign(&mut self, target: &Expr<'_>, value: &Expr<'_>) {
        self.expression(value);
        let of_people = self.of_people(value);
        targets(target).iter().for_each(|name| self.define(name, of_people));
    }

    fn names_template(&mut self, name: &Expr<'_>) {
        self.expression(name);
        if let Some(found) = constant(name).filter(|found| !self.checker.sources.contains_key(found)) {
            self.flaw(name.span().start_line, format!("there is no template `{found}`"));
        }
    }

    fn raw(&mut self, raw: &str) {
        for piece in raw.split_inclusive('\n') {
            self.line.push_str(piece);
            let Some(line) = self.line.strip_suffix('\n') else { continue };
            if self.captured == 0 && line.starts_with('%') {
                let word = line.split_whitespace().next().unwrap_or_default();
                match word {
                    "%end" => self.section.clear(),
                    "%include" | "%ksappend" => {}
                    _ => word.clone_into(&mut self.section),
                }
            }
            self.line.clear();
        }
    }

    /// Looks at a value that goes into the file.
    fn emitted(&mut self, expression: &Expr<'_>) {
        let place = match self.captured {
            0 => self.kind.place(&self.line, &self.section),
            _ => Place::Unknown,
        };
        if self.fits(expression, place) {
            return;
        }
        let [usual, ..] = place.escapes() else { return };
        let line = expression.span().start_line;
        self.flaw(
            line,
            format!("a value of people goes into the file as it is here; end it with `|{usual}`"),
        );
    }

    /// Whether a value may stand in a place: nobody else made it, or it is escaped for there.
    fn fits(&self, expression: &Expr<'_>, place: Place) -> bool {
        match expression {
            // That there is no such filter is told already.
            Expr::Filter(filter) if !self.checker.knows_filter(filter.name) => true,
            Expr::Filter(filter) if ESCAPES.contains(&filter.name) => {
                let everywhere = ["hostname", "prefix", "length"].contains(&filter.name);
                let of_people = filter.expr.as_ref().is_some_and(|inner| self.of_people(inner));
                everywhere || !of_people || place == Place::Unknown || place.escapes().contains(&filter.name)
            }
            Expr::IfExpr(found) => {
                self.fits(&found.true_expr, place)
                    && found.false_expr.as_ref().is_none_or(|other| self.fits(other, place))
            }
            Expr::Var(_)
            | Expr::Const(_)
            | Expr::Slice(_)
            | Expr::UnaryOp(_)
            | Expr::BinOp(_)
            | Expr::Compare(_)
            | Expr::Filter(_)
            | Expr::Test(_)
            | Expr::GetAttr(_)
            | Expr::GetItem(_)
            | Expr::Call(_)
            | Expr::List(_)
            | Expr::Tuple(_)
            | Expr::Map(_) => !self.of_people(expression),
        }
    }

    /// Whether people made what this gives.
    fn of_people(&self, expression: &Expr<'_>) -> bool {
        match expression {
            Expr::Var(var) => self.local(var.id).unwrap_or(var.id == "vars"),
            Expr::GetAttr(found) => match &found.expr {
                Expr::Var(var) if self.local(var.id).is_none() && var.id == "machine" => found.name == "name",
                inner => self.of_people(inner),
            },
            Expr::GetItem(found) => self.of_people(&found.expr),
            Expr::Slice(found) => self.of_people(&found.expr),
            Expr::Filter(filter) if ESCAPES.contains(&filter.name) => false,
            Expr::Filter(filter) => {
                let given = filter.args.iter().any(|argument| self.of_people(given(argument)));
                given || filter.expr.as_ref().is_some_and(|inner| self.of_people(inner))
            }
            Expr::BinOp(found) => self.of_people(&found.left) || self.of_people(&found.right),
            Expr::IfExpr(found) => {
                self.of_people(&found.true_expr)
                    || found.false_expr.as_ref().is_some_and(|other| self.of_people(other))
            }
            Expr::List(list) => list.items.iter().any(|item| self.of_people(item)),
            Expr::Tuple(tuple) => tuple.items.iter().any(|item| self.of_people(item)),
            Expr::Map(map) => map.keys.iter().chain(&map.values).any(|item| self.of_people(item)),
            // A macro's text is of the template; a method gives what its value is made of.
            Expr::Call(call) => match &call.expr {
                Expr::GetAttr(method) => self.of_people(&method.expr),
                _ => false,
            },
            Expr::Const(_) | Expr::UnaryOp(_) | Expr::Compare(_) | Expr::Test(_) => false,
        }
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) {
        arguments.iter().for_each(|argument| self.expression(given(argument)));
    }

    /// Looks whether all is there that an expression names.
    fn expression(&mut self, expression: &Expr<'_>) {
        match expression {
            Expr::Var(var) => self.variable(var.id, var.span().start_line),
            Expr::GetAttr(found) => {
                self.expression(&found.expr);
                if let Expr::Var(var) = &found.expr {
                    self.member(var.id, found.name, found.span().start_line);
                }
            }
            Expr::GetItem(found) => {
                self.expression(&found.expr);
                self.expression(&found.subscript_expr);
            }
            Expr::Slice(found) => {
                self.expression(&found.expr);
                let bounds = [&found.start, &found.stop, &found.step];
                bounds.into_iter().flatten().for_each(|bound| self.expression(bound));
            }
            Expr::UnaryOp(found) => self.expression(&found.expr),
            Expr::BinOp(found) => {
                self.expression(&found.left);
                self.expression(&found.right);
            }
            Expr::Compare(found) => {
                self.expression(&found.expr);
                found.ops.iter().for_each(|operation| self.expression(&operation.expr));
            }
            Expr::IfExpr(found) => {
                self.expression(&found.test_expr);
                self.expression(&found.true_expr);
                found.false_expr.iter().for_each(|other| self.expression(other));
            }
            Expr::Filter(filter) => {
                let line = filter.span().start_line;
                if !self.checker.knows_filter(filter.name) {
                    self.flaw(line, format!("there is no filter `{}`", filter.name));
                }
                let optional = ["default", "d"].contains(&filter.name);
                filter.expr.iter().for_each(|inner| self.perhaps(inner, optional));
                self.arguments(&filter.args);
            }
            Expr::Test(test) => {
                if !self.checker.knows_test(test.name) {
                    self.flaw(test.span().start_line, format!("there is no test `{}`", test.name));
                }
                self.perhaps(&test.expr, ["defined", "undefined"].contains(&test.name));
                self.arguments(&test.args);
            }
            Expr::Call(call) => {
                match &call.expr {
                    Expr::Var(function) => {
                        let known = self.local(function.id).is_some() || FUNCTIONS.contains(&function.id);
                        if !known {
                            let line = function.span().start_line;
                            self.flaw(line, format!("there is no function `{}`", function.id));
                        }
                    }
                    other => self.expression(other),
                }
                self.arguments(&call.args);
            }
            Expr::List(list) => list.items.iter().for_each(|item| self.expression(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(map) => map.keys.iter().chain(&map.values).for_each(|item| self.expression(item)),
            Expr::Const(_) => {}
        }
    }

    /// An expression that may name what is not set.
    fn perhaps(&mut self, expression: &Expr<'_>, optional: bool) {
        let of_vars = matches!(expression, Expr::GetAttr(found) if matches!(&found.expr, Expr::Var(var) if var.id == "vars"));
        if !(optional && of_vars) {
            self.expression(expression);
        }
    }

    fn variable(&mut self, name: &str, line: u16) {
        let known = self.local(name).is_some() || FACTS.iter().any(|(fact, _)| *fact == name);
        if !known && !FUNCTIONS.contains(&name) {
            let facts: Vec<&str> = FACTS.iter().map(|(fact, _)| *fact).collect();
            self.flaw(line, format!("there is no `{name}`; known: {}", facts.join(", ")));
        }
    }

    fn member(&mut self, of: &str, name: &str, line: u16) {
        if self.local(of).is_some() {
            return;
        }
        if of == "vars" {
            let there = self.there.iter().any(|variable| variable == name);
            if !there && !self.checker.variables.contains(name) {
                let known: Vec<&str> = self.checker.variables.iter().map(String::as_str).collect();
                let remedy = crate::config::nearest(name, &known);
                self.flaw(line, format!("no profile has a variable `{name}`; {remedy}"));
            }
            return;
        }
        let members = FACTS.iter().find(|(fact, _)| *fact == of).map(|(_, members)| *members);
        if let Some(members) = members.filter(|members| !members.is_empty() && !members.contains(&name)) {
            self.flaw(line, format!("`{of}` has no `{name}`; known: {}", members.join(", ")));
        }
    }
}

/// The variables that are set where a condition holds: `vars.NAME is defined`, also several with `and`.
fn found_there<'t>(condition: &Expr<'t>) -> Vec<&'t str> {
    match condition {
        Expr::Test(test) if test.name == "defined" => match &test.expr {
            Expr::GetAttr(found) if matches!(&found.expr, Expr::Var(var) if var.id == "vars") => {
                vec![found.name]
            }
            _ => Vec::new(),
        },
        Expr::BinOp(both) if matches!(both.op, BinOpKind::ScAnd) => {
            [found_there(&both.left), found_there(&both.right)].concat()
        }
        _ => Vec::new(),
    }
}

const fn given<'t, 's>(argument: &'t CallArg<'s>) -> &'t Expr<'s> {
    match argument {
        CallArg::Pos(value)
        | CallArg::Kwarg(_, value)
        | CallArg::PosSplat(value)
        | CallArg::KwargSplat(value) => value,
    }
}
