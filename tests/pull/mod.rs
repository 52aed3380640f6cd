//! Getting models: from the hub, against a fake one, and out of wheels.

mod fake_hub;
mod hub;
mod wheel;
