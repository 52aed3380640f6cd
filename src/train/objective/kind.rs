//! The choice of the objective, and the settings that belong to each.

use super::classify::Classify;
use super::dpo::{Dpo, PairLoss};
use super::kto::Kto;
use super::orpo::Orpo;
use super::simpo::SimPo;
use super::{Objective, Sft};
use crate::data::Format;
use crate::settings::choice;
use crate::train::label_weights::LabelWeights;
use crate::train::{EvalOn, TrainSettings};

choice! {
    /// The value that training minimises.
    ObjectiveKind {
        /// Supervised fine-tuning: the mean loss of the trained tokens.
        Sft = "sft",
        /// Direct preference optimisation (Rafailov et al. 2023): pairs, against a reference.
        Dpo = "dpo",
        /// Identity preference optimisation (Azar et al. 2023): pairs, against a reference, with a squared loss.
        Ipo = "ipo",
        /// Odds ratio preference optimisation (Hong et al. 2024): pairs, without a reference.
        Orpo = "orpo",
        /// Kahneman-Tversky optimisation (Ethayarajh et al. 2024): answers with labels, against a reference.
        Kto = "kto",
        /// Simple preference optimisation (Meng et al. 2024): pairs, without a reference.
        SimPo = "simpo",
        /// Classification: the cross entropy of the labels of texts, with a head of labels over the last token.
        Classify = "classify",
    }
}

/// A setting of some objectives: its key, whether it is given, and the objectives that read it.
type Special = (&'static str, fn(&TrainSettings) -> bool, &'static [ObjectiveKind]);

/// The settings that only some objectives read.
const SPECIAL: [Special; 9] = {
    use ObjectiveKind::{Classify, Dpo, Ipo, Kto, Orpo, SimPo};
    [
        ("train.beta", |train| train.beta.is_some(), &[Dpo, Ipo, Orpo, Kto, SimPo]),
        ("train.preference_smoothing", |train| train.preference_smoothing > 0.0, &[Dpo, SimPo]),
        ("train.rpo_alpha", |train| train.rpo_alpha > 0.0, &[Dpo, Ipo]),
        ("train.length_normalised", |train| train.length_normalised, &[Dpo]),
        ("train.target_margin", |train| train.target_margin.is_some(), &[SimPo]),
        ("train.desirable_weight", |train| train.desirable_weight.is_some(), &[Kto]),
        ("train.undesirable_weight", |train| train.undesirable_weight.is_some(), &[Kto]),
        ("train.label_weights", |train| train.label_weights != LabelWeights::Equal, &[Classify]),
        ("train.eval_on", |train| train.eval_on == EvalOn::Accuracy, &[Classify]),
    ]
};

impl ObjectiveKind {
    /// Whether it compares answers, or judges them.
    pub fn is_preference(self) -> bool {
        !matches!(self, Self::Sft | Self::Classify)
    }

    /// The shape that the training examples must have; `None` for any that has no label and is no preference.
    pub fn data_format(self) -> Option<Format> {
        match self {
            Self::Sft => None,
            Self::Classify => Some(Format::Class),
            Self::Kto => Some(Format::Labelled),
            Self::Dpo | Self::Ipo | Self::Orpo | Self::SimPo => Some(Format::Preference),
        }
    }

    /// `β` where it is not given: that of the papers' authors.
    fn default_beta(self) -> f64 {
        if self == Self::SimPo { 2.0 } else { 0.1 }
    }
}

impl TrainSettings {
    /// The objective that these settings describe.
    pub fn objective(&self) -> Box<dyn Objective> {
        let beta = self.beta.unwrap_or(self.objective.default_beta());
        let (smoothing, length_normalised) = (self.preference_smoothing, self.length_normalised);
        match self.objective {
            ObjectiveKind::Sft => Box::new(Sft),
            ObjectiveKind::Classify => Box::new(Classify),
            ObjectiveKind::Dpo => {
                let loss = PairLoss::Sigmoid { smoothing, length_normalised };
                Box::new(Dpo { beta, loss, rpo_alpha: self.rpo_alpha })
            }
            ObjectiveKind::Ipo => Box::new(Dpo { beta, loss: PairLoss::Squared, rpo_alpha: self.rpo_alpha }),
            ObjectiveKind::Orpo => Box::new(Orpo { beta }),
            ObjectiveKind::Kto => Box::new(Kto {
                beta,
                desirable_weight: self.desirable_weight.unwrap_or(1.0),
                undesirable_weight: self.undesirable_weight.unwrap_or(1.0),
            }),
            // The authors' advice: γ about half of β.
            ObjectiveKind::SimPo => {
                Box::new(SimPo { beta, margin: self.target_margin.unwrap_or(beta / 2.0), smoothing })
            }
        }
    }

    /// The settings that are given and that the objective does not read, each with the objectives that do.
    pub fn unread_by_objective(&self) -> Vec<(&'static str, &'static [ObjectiveKind])> {
        let unread =
            SPECIAL.iter().filter(|(_, is_given, readers)| is_given(self) && !readers.contains(&self.objective));
        unread.map(|(key, _, readers)| (*key, *readers)).collect()
    }
}
