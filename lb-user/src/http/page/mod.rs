//! The web page: static files that the program contains.

use axum::{
    Router,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::state::HttpState;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, type and content.
const FILES: [(&str, &str, &str); 18] = [
    ("/", HTML, include_str!("index.html")),
    ("/page/style.css", CSS, include_str!("style.css")),
    ("/page/icon.svg", SVG, include_str!("icon.svg")),
    ("/page/app.js", SCRIPT, include_str!("app.js")),
    ("/page/charts.js", SCRIPT, include_str!("charts.js")),
    ("/page/events.js", SCRIPT, include_str!("events.js")),
    ("/page/format.js", SCRIPT, include_str!("format.js")),
    ("/page/graphs.js", SCRIPT, include_str!("graphs.js")),
    ("/page/lists.js", SCRIPT, include_str!("lists.js")),
    ("/page/live.js", SCRIPT, include_str!("live.js")),
    ("/page/names.js", SCRIPT, include_str!("names.js")),
    ("/page/overview.js", SCRIPT, include_str!("overview.js")),
    ("/page/peers.js", SCRIPT, include_str!("peers.js")),
    ("/page/picture.js", SCRIPT, include_str!("picture.js")),
    ("/page/series.js", SCRIPT, include_str!("series.js")),
    ("/page/service.js", SCRIPT, include_str!("service.js")),
    ("/page/trouble.js", SCRIPT, include_str!("trouble.js")),
    ("/page/workers.js", SCRIPT, include_str!("workers.js")),
];

pub fn router() -> Router<HttpState> {
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
    use lb_core::ShareReasonKind;

    use super::*;

    /// The guard's Content-Security-Policy allows nothing else, and the page must work offline.
    #[test]
    fn refers_to_its_own_files_only() {
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
    fn the_list_of_trouble_follows_the_reasons() {
        let schema = serde_json::to_string(&schemars::schema_for!(ShareReasonKind)).unwrap();
        let names = schema.split("\"const\":\"").skip(1);
        let names = names.map(|rest| rest.split('"').next().unwrap());
        let is_trouble = |name: &&str| {
            let kind: ShareReasonKind = serde_json::from_value((*name).into()).unwrap();
            kind.is_trouble()
        };
        let expected: Vec<&str> = names.filter(is_trouble).collect();
        assert_eq!(list(include_str!("trouble.js"), "TROUBLE"), expected);
    }

    /// The texts of a set in a script.
    fn list<'a>(script: &'a str, name: &str) -> Vec<&'a str> {
        let (_, set) = script
            .split_once(&format!("const {name} = new Set(["))
            .expect("the list");
        let (set, _) = set.split_once("])").expect("the end of the list");
        set.split('"').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_lists_of_verdicts_follow_their_classes() {
        let script = include_str!("lists.js");
        type HasClass = fn(VerdictClass) -> bool;
        let lists: [(&str, HasClass); 2] = [
            ("CARRIED", |class| class == VerdictClass::Forwarded),
            ("LOSSES", VerdictClass::is_loss),
        ];
        for (name, has) in lists {
            let verdicts = Verdict::ALL.iter().filter(|it| has(it.class()));
            let expected: Vec<&str> = verdicts.map(|it| it.name()).collect();
            assert_eq!(list(script, name), expected, "{name} in lists.js");
        }
    }
}
