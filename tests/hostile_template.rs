//! Broken and hostile chat templates: named errors, in bounded time, and no panic.

use std::time::{Duration, Instant};

use burnish::data::{ChatTemplate, Message};

fn compile(source: &str) -> burnish::Result<ChatTemplate> {
    ChatTemplate::compile(source, "model", &[])
}

fn render(source: &str) -> burnish::Result<String> {
    compile(source)?.render(&[Message::user("a")], true)
}

#[test]
fn chains_that_would_overflow_the_stack_are_refused_at_once() {
    let chain = |part: &str| format!("{{{{ 1{} }}}}", part.repeat(10_000));
    let elifs = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(2_000));
    let mut sources: Vec<String> = [
        "~1",
        "()",
        "|f",
        ".a",
        "[0]",
        " and 1",
        " or 1",
        " is odd",
        " in x",
        "+1",
        "-1",
        "**1",
        "==1",
        " if 1 else 1",
    ]
    .iter()
    .map(|part| chain(part))
    .collect();
    sources.push(format!("{{{{ {}1 }}}}", "not ".repeat(10_000)));
    sources.push(format!("{{{{ {}1 }}}}", "-".repeat(10_000)));
    sources.push(format!("{{{{ {}1 }}}}", "(".repeat(10_000)));
    sources.push(format!("{{{{ {{'a': '}}}}'}}{} }}}}", "~1".repeat(10_000)));
    sources.push(elifs);
    sources.push(format!("{{{{ 1{} }}}}", "~1".repeat(32_000)));
    for source in sources {
        let start = Instant::now();
        let error = compile(&source).expect_err("too long").to_string();
        assert!(error.contains("chain too long"), "{}: {error}", &source[..40]);
        assert!(start.elapsed() < Duration::from_secs(20), "{}: {:?}", &source[..40], start.elapsed());
    }
    let error = compile(&"x".repeat(1 << 20)).expect_err("too long").to_string();
    assert!(error.contains("at most 131072"), "{error}");
}

#[test]
fn what_passes_the_limits_compiles_or_fails_without_an_abort() {
    let nested = |open: &str, close: &str, count: usize| format!("{}{}", open.repeat(count), close.repeat(count));
    for source in [
        nested("{% if 1 %}", "{% endif %}", 5_000),
        nested("{% for x in [1] %}", "{% endfor %}", 3_000),
        format!("{{{{ {} }}}}", nested("{'a':", "}", 10_000)),
        format!("{{{{ [{}] }}}}", "1,".repeat(50_000)),
        format!("{{{{ {} }}}}", "'a' ".repeat(20_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(450)),
        "{{ 1".repeat(20_000),
        "{% set x = 1 %}".repeat(8_000),
        format!("{{{{ 1{} }}}}", "~1".repeat(390)).repeat(50),
    ] {
        let start = Instant::now();
        let _ = render(&source);
        assert!(start.elapsed() < Duration::from_secs(20), "{}: {:?}", &source[..20], start.elapsed());
    }
}

#[test]
fn a_namespace_can_hold_neither_itself_nor_an_endless_chain() {
    let cyclic = "{% set ns = namespace() %}{% set ns.a = ns %}";
    let mut sources: Vec<String> =
        ["{{ ns }}", "{{ ns | tojson }}", "{{ ns ~ 'x' }}", "{{ ns == ns }}", "{{ ns | string }}", "{{ {ns: 1} }}"]
            .map(|end| format!("{cyclic}{end}"))
            .to_vec();
    let repeated = |start: &str, body: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for j in range(9) %}}{{% for i in range(99999) %}}{body}{{% endfor %}}\
             {{% endfor %}}"
        )
    };
    sources.extend(
        [
            "{% set ns = namespace() %}{%- set ns . a=[1, {'b': (ns, 2)}]-%}{{ ns }}",
            "{% set ns = namespace() %}{% set (ns.a, y) = (ns, 1) %}{{ ns }}",
            "{% set ns = namespace() %}{% set y, ns.a = 1, ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a | default(ns, true) %}{% endset %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] | reverse %}{{ ns }}",
            "{% set ns = namespace() %}{% for x in [1, ns] %}{% set ns.a = loop %}{{ ns | tojson }}{% endfor %}",
            "{% macro kept(x) %}{% endmacro %}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            // Where minijinja sees a tag is where it has to be seen.
            "{% raw %}{#{% endraw %}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{#}{% raw %}#}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{#{% endraw %}#}",
            "{%- raw -%}{% raw %}{%- endraw +%}{% set q = '%}' %}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        ]
        .map(str::to_owned),
    );
    sources.extend([
        repeated("1", "{% set ns.x = namespace(x=ns.x) %}"),
        repeated("{}", "{% set ns.x = {'a': ns.x} %}"),
        repeated("1", "{% set g = ns.x %}{% macro f() %}{{ g }}{% endmacro %}{% set ns.x = f %}"),
        repeated("[1]", "{% set ns.x = ns.x[0:] %}"),
        repeated("[[1]]", "{% set ns.x = [ns.x[0][0:]] %}"),
    ]);
    for source in sources {
        let start = Instant::now();
        render(&source).expect_err(&source);
        assert!(start.elapsed() < Duration::from_secs(20), "{source}: {:?}", start.elapsed());
    }
}

#[test]
fn a_namespace_holds_plain_data_as_it_is() {
    let source = "{% set ns = namespace(n=0, l=[], d={}) %}\n{% for m in messages %}\n  {% set ns.n = ns.n + 1 %}\n\
                  {%- set ns.l = ns.l + [m] -%}\n  {% set ns.d = {'a': m, 'b': ns.l[0:]} %}\n{% endfor %}\n\
                  {% raw %}{% set ns.n = 7 %}{% endraw %}{# {% set ns.n = 8 %} #}{% set ns.t %}a{% endset %}\
                  {{ ns.n }}{{ ns.t }}|{{ ns.l[0].content }}|{{ ns.d.a.role }}|{{ ns.d.b[0].role }}";
    assert_eq!(render(source).expect("renders"), "{% set ns.n = 7 %}1a|a|user|user");
}

#[test]
fn a_raw_block_hides_no_chain() {
    let start = Instant::now();
    let source = format!("{{% raw %}}{{#{{% endraw %}}{{{{ 1{} }}}}", "~1".repeat(30_000));
    let error = compile(&source).expect_err("too long").to_string();
    assert!(error.contains("chain too long") && start.elapsed() < Duration::from_secs(5), "{error}");
}

#[test]
fn a_template_cannot_make_a_conversation_too_long_to_encode() {
    let error = render("{{ 'x' * 50000000 }}").expect_err("too long").to_string();
    assert!(error.contains("makes 50000000 bytes of a conversation of 1"), "{error}");
    render("{{ ('a,' * 40000000).split(',') | length }}").expect_err("gigabytes");
}

#[test]
fn templates_that_do_too_much_are_stopped() {
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ 'x' * 100000000000 }}",
        "{{ 'x'.center(99999999999) }}",
        "{{ '%999999999999d' | format(1) }}",
        "{{ range(1, 99999999999) | list }}",
        "{{ messages | tojson(indent=99999999999) }}{% for a in range(9999) %}{{ messages | tojson }}{% endfor %}",
    ] {
        let start = Instant::now();
        let result = render(source);
        assert!(start.elapsed() < Duration::from_secs(20), "{source}: {:?}", start.elapsed());
        if let Ok(text) = result {
            assert!(text.len() < 1 << 20, "{source}: {} bytes", text.len());
        }
    }
}

#[test]
fn templates_reach_nothing_but_their_messages() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{% from '/etc/passwd' import y %}{{ y }}",
        "{{ ''.__class__.__mro__[1] }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.__class__.__name__ }}",
        "{{ (messages | attr('__class__')).x }}",
    ] {
        if let Ok(text) = render(source) {
            assert!(!text.contains("root:") && !text.contains("class"), "{source} gives {text:?}");
        }
    }
}

#[test]
fn broken_templates_are_named() {
    for source in
        ["{% if %}", "{{ ", "{% for x in %}{% endfor %}", "{% endif %}", "{{ 1 + }}", "{% unknown %}", "{{ 'a }}"]
    {
        let error = compile(source).expect_err("broken").to_string();
        assert!(error.contains("model: chat template: does not compile"), "{error}");
    }
    let error = render("{{ messages[0].content.nothing.at_all }}").expect_err("undefined").to_string();
    assert!(error.contains("cannot render the conversation"), "{error}");
}
