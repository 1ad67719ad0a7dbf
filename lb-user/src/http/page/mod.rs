//! The web page: a few static files in the program.

use axum::{
    Router,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::Shared;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, type and content.
const FILES: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("index.html")),
    ("/page/style.css", CSS, include_str!("style.css")),
    ("/page/icon.svg", SVG, include_str!("icon.svg")),
    ("/page/app.js", SCRIPT, include_str!("app.js")),
    ("/page/charts.js", SCRIPT, include_str!("charts.js")),
    ("/page/format.js", SCRIPT, include_str!("format.js")),
    ("/page/history.js", SCRIPT, include_str!("history.js")),
    ("/page/live.js", SCRIPT, include_str!("live.js")),
    ("/page/picture.js", SCRIPT, include_str!("picture.js")),
    ("/page/lists.js", SCRIPT, include_str!("lists.js")),
];

pub fn router() -> Router<Shared> {
    FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, content)| {
            router.route(path, get(move || async move { file(kind, content) }))
        })
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let kind = HeaderValue::from_static(kind);
    ([(header::CONTENT_TYPE, kind)], content).into_response()
}

#[cfg(test)]
mod tests {
    use lb_common::verdict::{Verdict, VerdictClass};

    use super::*;

    /// The policy of the guard allows nothing else, and nobody must wait for the Internet.
    #[test]
    fn refers_to_nothing_but_its_own_files() {
        for (path, _, content) in FILES {
            let addresses = content.split("http").skip(1);
            let foreign: Vec<&str> = addresses
                .map(|rest| rest.get(..40).unwrap_or(rest))
                .filter(|rest| rest.starts_with("://") || rest.starts_with("s://"))
                .filter(|rest| !rest.starts_with("://www.w3.org/2000/svg"))
                .collect();
            assert!(foreign.is_empty(), "{path}: {foreign:?}");
            for forbidden in ["innerHTML", "<style", " style=\"", "onclick="] {
                assert!(!content.contains(forbidden), "{path}: {forbidden}");
            }
            for import in content.split("from \"./").skip(1) {
                let name = import.split('"').next().expect("the end of a name");
                let known = FILES
                    .iter()
                    .any(|(path, ..)| *path == format!("/page/{name}"));
                assert!(known, "{path} imports {name}");
            }
        }
    }

    #[test]
    fn the_lists_of_verdicts_follow_their_classes() {
        let script = include_str!("lists.js");
        type HasClass = fn(VerdictClass) -> bool;
        let lists: [(&str, HasClass); 2] = [
            ("CARRIED", |class| class == VerdictClass::Forwarded),
            ("LOSSES", VerdictClass::is_loss),
        ];
        for (list, has) in lists {
            let (_, set) = script
                .split_once(&format!("const {list} = new Set(["))
                .expect("the list");
            let (set, _) = set.split_once("])").expect("the end of the list");
            let names: Vec<&str> = set.split('"').skip(1).step_by(2).collect();
            let verdicts = Verdict::ALL.iter().filter(|it| has(it.class()));
            let expected: Vec<&str> = verdicts.map(|it| it.name()).collect();
            assert_eq!(names, expected, "{list} in lists.js");
        }
    }
}
