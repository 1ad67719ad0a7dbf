//! The attributes of tests that need root.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Makes a test of a function. Without root the test is skipped, or fails where `MEMLB_REQUIRE_ROOT` is `1`.
///
/// With words, as in `#[root_test(tc, xdp)]`, it makes a test of each word. The function takes the word as its
/// only argument, a `&str`. The tests are named `FUNCTION::WORD`.
#[proc_macro_attribute]
pub fn root_test(words: TokenStream, function: TokenStream) -> TokenStream {
    let words: Vec<String> = words
        .into_iter()
        .filter(|token| matches!(token, TokenTree::Ident(_)))
        .map(|word| word.to_string())
        .collect();
    if words.is_empty() {
        return guarded(function);
    }
    let name = name_of(&function);
    let tests = words.iter().map(|word| {
        format!(
            "#[test] fn {word}() {{
                if ::memlb_tests::require_root() {{ super::{name}({word:?}); }}
            }}"
        )
    });
    let module = format!("mod {name} {{ {} }}", tests.collect::<String>());
    function.into_iter().chain(parse(&module)).collect()
}

/// Makes a packet test of a function that takes a `&mut Bench`: `#[packet_test(over(Family::V4))]` passes it to
/// `crate::bench::over` as the last argument, behind `Family::V4`.
#[proc_macro_attribute]
pub fn packet_test(runner: TokenStream, function: TokenStream) -> TokenStream {
    let mut runner = runner.into_iter();
    let run = runner.next().map_or_else(String::new, |it| it.to_string());
    let arguments = match runner.next() {
        Some(TokenTree::Group(group)) => format!("{}, ", group.stream()),
        _ => String::new(),
    };
    let name = name_of(&function);
    let call = parse(&format!("crate::bench::{run}({arguments}{name});"));
    let body = function.into_iter().chain(call).collect();
    let body = TokenTree::from(Group::new(Delimiter::Brace, body));
    parse(&format!("#[test] fn {name}()"))
        .into_iter()
        .chain([body])
        .collect()
}

/// Makes a test of `function`, whose body begins with the guard.
fn guarded(function: TokenStream) -> TokenStream {
    let guard = parse("if !::memlb_tests::require_root() { return; }");
    let mut tokens: Vec<TokenTree> = function.into_iter().collect();
    if let Some(TokenTree::Group(body)) = tokens.last_mut()
        && body.delimiter() == Delimiter::Brace
    {
        let statements = guard.into_iter().chain(body.stream()).collect();
        let mut with_guard = Group::new(Delimiter::Brace, statements);
        with_guard.set_span(body.span());
        *body = with_guard;
    }
    parse("#[test]").into_iter().chain(tokens).collect()
}

fn name_of(function: &TokenStream) -> String {
    let mut tokens = function.clone().into_iter();
    tokens.find(|token| token.to_string() == "fn");
    tokens
        .next()
        .map(|name| name.to_string())
        .unwrap_or_default()
}

fn parse(code: &str) -> TokenStream {
    code.parse().expect("the code of this macro is Rust")
}
