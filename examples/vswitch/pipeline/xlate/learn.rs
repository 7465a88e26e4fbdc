//! `learn`: a flow made of a packet.

use super::{Effect, Walk};
use crate::vswitch::flow::action::{Action, Flow, FlowFlags, From, Learn, To, port_from_16};
use crate::vswitch::flow::fields::ones;
use crate::vswitch::flow::{Field, Match};

impl Walk<'_> {
    pub(super) fn learn(&mut self, learn: &Learn) {
        let mut matching = Match::default();
        let mut actions = Vec::new();
        for spec in &learn.specs {
            let value = match &spec.from {
                From::Value(value) => *value,
                From::Field(src) => self.read(*src),
            };
            match &spec.to {
                To::Match(dst) => {
                    let (old, mask) = matching.get(dst.field);
                    let bits = dst.mask();
                    let value = old & !bits | value << dst.start & bits;
                    // A part of a tag's number is said as bits of the tag.
                    let field = if dst.field == Field::VlanTci { Field::VlanTci } else { dst.field };
                    matching.set_masked(field, value, mask | bits);
                }
                To::Load(dst) => actions.push(Action::Load { value: value & ones(dst.len), dst: *dst }),
                To::Output => {
                    let port = if spec.bits <= 16 { port_from_16(value as u16) } else { value as u32 };
                    actions.push(Action::Output { port, max_len: 0 });
                }
            }
        }
        let flow = Flow {
            table: learn.table,
            priority: learn.priority,
            matching,
            cookie: learn.cookie,
            idle_timeout: learn.idle_timeout,
            hard_timeout: learn.hard_timeout,
            importance: 0,
            flags: FlowFlags { send_flow_rem: learn.send_flow_rem, ..FlowFlags::default() },
            actions: with_fin(learn, actions),
        };
        self.say(|| format!(" -> {}", flow.text(&crate::vswitch::flow::values::Numbers)));
        self.out.effects.push(Effect::Learn(self.bridge, Box::new(flow), learn.limit));
        if let Some(result) = learn.result {
            self.write(result, 1);
        }
    }
}

fn with_fin(learn: &Learn, mut actions: Vec<Action>) -> Vec<Action> {
    if learn.fin_idle_timeout != 0 || learn.fin_hard_timeout != 0 {
        let fin = Action::FinTimeout { idle: learn.fin_idle_timeout, hard: learn.fin_hard_timeout };
        actions.insert(0, fin);
    }
    actions
}
