//! The expressions of `get_all_records_where`, as xapi's database reads them: `true`, `false`, `not (…)`, `… and …`,
//! `… or …`, and `field "name__label" = "web-01"`. Pure.

/// Whether a record passes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expression {
    True,
    False,
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Equal(Operand, Operand),
}

/// One side of an equation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// A field by its XenAPI name.
    Field(String),
    Literal(String),
}

/// How deep parentheses and negations may nest.
const DEPTH: usize = 64;

impl Operand {
    fn field(&self) -> Option<&str> {
        match self {
            Self::Field(name) => Some(name),
            Self::Literal(_) => None,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Open,
    Close,
    Equals,
}

impl Expression {
    /// Reads the text; `None` when it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        let parsed = parser.disjunction(DEPTH)?;
        (parser.at == parser.tokens.len()).then_some(parsed)
    }

    /// Whether a record passes; `field` gives a field's text, `None` for a field that there is not.
    pub(super) fn holds(&self, field: &impl Fn(&str) -> Option<String>) -> bool {
        match self {
            Self::True => true,
            Self::False => false,
            Self::Not(inner) => !inner.holds(field),
            Self::And(left, right) => left.holds(field) && right.holds(field),
            Self::Or(left, right) => left.holds(field) || right.holds(field),
            Self::Equal(left, right) => {
                let text = |operand: &Operand| match operand {
                    Operand::Field(name) => field(name),
                    Operand::Literal(text) => Some(text.clone()),
                };
                text(left).is_some_and(|left| text(right) == Some(left))
            }
        }
    }

    /// Every field that it names.
    pub(super) fn fields(&self) -> Vec<&str> {
        match self {
            Self::True | Self::False => Vec::new(),
            Self::Not(inner) => inner.fields(),
            Self::And(left, right) | Self::Or(left, right) => [left.fields(), right.fields()].concat(),
            Self::Equal(left, right) => [left, right].into_iter().filter_map(Operand::field).collect(),
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn take(&mut self, token: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(token);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str) -> bool {
        let is_word = |token: &Token| matches!(token, Token::Word(found) if found == word);
        let found = self.tokens.get(self.at).is_some_and(is_word);
        self.at += usize::from(found);
        found
    }

    fn disjunction(&mut self, depth: usize) -> Option<Expression> {
        let mut left = self.conjunction(depth)?;
        while self.word("or") {
            left = Expression::Or(Box::new(left), Box::new(self.conjunction(depth)?));
        }
        Some(left)
    }

    fn conjunction(&mut self, depth: usize) -> Option<Expression> {
        let mut left = self.single(depth)?;
        while self.word("and") {
            left = Expression::And(Box::new(left), Box::new(self.single(depth)?));
        }
        Some(left)
    }

    fn single(&mut self, depth: usize) -> Option<Expression> {
        let deeper = depth.checked_sub(1)?;
        if self.word("not") {
            return Some(Expression::Not(Box::new(self.single(deeper)?)));
        }
        if self.word("true") {
            return Some(Expression::True);
        }
        if self.word("false") {
            return Some(Expression::False);
        }
        if self.take(&Token::Open) {
            let inner = self.disjunction(deeper)?;
            return self.take(&Token::Close).then_some(inner);
        }
        let left = self.operand()?;
        if !self.take(&Token::Equals) {
            return None;
        }
        Some(Expression::Equal(left, self.operand()?))
    }

    fn operand(&mut self) -> Option<Operand> {
        let is_field = self.word("field");
        let Some(Token::Quoted(text)) = self.tokens.get(self.at) else { return None };
        self.at += 1;
        // The database joins the parts of a field's name by two underscores.
        Some(if is_field { Operand::Field(text.replace("__", "_")) } else { Operand::Literal(text.clone()) })
    }
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '=' => (Token::Equals, 1),
            '"' | '\'' => {
                let quoted = rest.get(1..)?.split_once(first)?.0;
                (Token::Quoted(quoted.to_owned()), quoted.len() + 2)
            }
            letter if letter.is_ascii_alphabetic() => {
                let end = rest.find(|other: char| !other.is_ascii_alphabetic()).unwrap_or(rest.len());
                let word = rest.get(..end)?;
                (Token::Word(word.to_owned()), end)
            }
            _ => return None,
        };
        found.push(token);
        rest = rest.get(length..)?.trim_start();
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `y` or `n` for a record with `name_label` a and `is_a_template` false, `?` for what is no expression.
    fn check(text: &str) -> &'static str {
        let field = |name: &str| match name {
            "name_label" => Some("a".to_owned()),
            "is_a_template" => Some("false".to_owned()),
            _ => None,
        };
        match Expression::parse(text) {
            None => "?",
            Some(expression) if expression.holds(&field) => "y",
            Some(_) => "n",
        }
    }

    #[test]
    fn expressions_are_read_as_the_database_reads_them() {
        let rows = [
            ("true", "y"),
            (" false ", "n"),
            ("field \"name__label\" = \"a\"", "y"),
            ("field \"name_label\"='a'", "y"),
            ("\"a\" = field \"name__label\"", "y"),
            ("not field \"name__label\" = \"a\"", "n"),
            ("(field \"name__label\" = \"b\") or (not (field \"is_a_template\" = \"true\"))", "y"),
            ("true and false or true", "y"),
            ("true or true and false", "y"),
            ("field \"nothing\" = \"a\"", "n"),
            ("", "?"),
            ("field \"name__label\"", "?"),
            ("(true", "?"),
            ("true true", "?"),
            ("\"a", "?"),
            ("name = \"ä", "?"),
            ("1", "?"),
        ];
        for (text, expected) in rows {
            assert_eq!(check(text), expected, "{text}");
        }
        assert_eq!(check(&"(".repeat(10_000)), "?", "no deep recursion");
        assert_eq!(Expression::parse("field \"a__b\" = 'x' and true").unwrap().fields(), ["a_b"]);
    }
}
