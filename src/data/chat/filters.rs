//! Tests and filters that answer as Jinja2's do where minijinja's answer otherwise.
