//! The settings of an adapter: which modules it changes, and with what rank and scale each.

use std::path::PathBuf;

pub use super::choices::{ByPattern, Modules, Targets};
use super::choices::{at_least_one, each};
use super::init::Init;
use super::peft::patterns::Selection;
use crate::error::{Error, Place, Result};
use crate::model::sites::is_named;
use crate::model::{ModelConfig, Site, SiteKind};
use crate::settings::{Limit, above, any, below, between, choice, defaults, not_empty, optional, section};

section! {
    /// The low-rank adapter.
    AdapterSpec {
        /// Rank of the two factors.
        rank: usize = Take(8), between(1..=65_536);
        /// The update is scaled by alpha / rank.
        alpha: f64 = Take(16.0), above(0.0, 1e6);
        /// Share of the adapter's inputs dropped while training.
        dropout: f64 = Take(0.0), below(0.0, 1.0);
        /// The modules that get a low-rank pair: `attention` for those of attention (q, k, v and o in most families),
        /// `all-linear` for every linear layer but the head, as PEFT means it, a list of names (a whole path, or its end after a
        /// dot; `lm_head` and `embed_tokens` are such names too), or a regular expression that the whole path matches. Those of a tower or
        /// a connector are taken by a regular expression, or by a name that no module of the language model has.
        targets: Targets = Take(Targets::Attention), at_least_one();
        /// Modules that get none all the same, by a list of names or a regular expression.
        exclude: Option<Modules> = Take(None), any();
        /// The layers, by number from 0, that the targets are taken from; a module listed with its whole path is taken in any case. All by default.
        layers: Option<Vec<usize>> = Take(None), optional(not_empty());
        /// Ranks of their own for some modules, by regular expressions for the end of their paths, as in `{ "layers\.0\..*" = 16, down_proj = 4 }`.
        rank_pattern: ByPattern<usize> = Take(ByPattern::NONE), each(between(1..=65_536));
        /// The same for `alpha`.
        alpha_pattern: ByPattern<f64> = Take(ByPattern::NONE), each(above(0.0, 1e6));
        /// Modules of which a whole copy is trained and saved with the adapter, by name: the embedding, the head, norms or projections. They
        /// get no low-rank pair. None by default.
        modules_to_save: Vec<String> = Take(Vec::new()), any();
        /// Tokens whose rows of the embedding, and of the head, are trained, as in `["<|tool|>"]`. Those that the tokenizer does not have are
        /// added to it, as ordinary tokens that are found in every text; the tokenizer is saved with the adapter. None by default.
        new_tokens: Vec<String> = Take(Vec::new()), tokens();
        /// The biases that are trained as well.
        bias: Bias = Take(Bias::None), any();
        /// Scale by alpha / √rank instead (rank-stabilised LoRA, Kalajdzievski 2023).
        rslora: bool = Take(false), any();
        /// Train the length of each row of an adapted weight apart from its direction (DoRA, Liu et al. 2024); `dropout` has to be 0.
        dora: bool = Take(false), any();
        /// The first values of the factors, by the names of PEFT's `init_lora_weights`. `pissa` and `olora` leave the base as it is:
        /// the saved adapter has twice the rank, and `dropout` has to be 0.
        init: Init = Take(Init::Kaiming), any();
        /// The folder of an adapter to begin with, of burnish, PEFT or mlx-lm, whose ranks, alphas and projections are those above. None
        /// by default: the first values follow from the seed.
        from: Option<PathBuf> = Take(None), optional(not_empty());
    }
}

/// Different texts, none of them empty.
fn tokens() -> Limit<Vec<String>> {
    Limit::new("different texts that are not empty", |tokens: &Vec<String>| {
        let is_new = |(index, token): (usize, &String)| !token.trim().is_empty() && !tokens[..index].contains(token);
        tokens.iter().enumerate().all(is_new)
    })
}

choice! {
    /// The biases that are trained beside the low-rank pairs, as PEFT has it.
    Bias {
        /// None.
        None = "none",
        /// Those of the modules that have a pair.
        LoraOnly = "lora_only",
        /// All of the base, norms included.
        All = "all",
    }
}

#[expect(clippy::derivable_impls, reason = "`choice!` declares no default")]
impl Default for Bias {
    fn default() -> Self {
        Self::None
    }
}

impl Default for AdapterSpec {
    fn default() -> Self {
        defaults()
    }
}

/// A site that the adapter changes.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedSite {
    /// The site.
    pub site: Site,
    /// The rank of its pair.
    pub rank: usize,
    /// The factor on `B · A`.
    pub scale: f64,
}

impl AdapterSpec {
    /// The sites that the adapter changes, in the order of the model, each with its rank and scale.
    ///
    /// # Errors
    /// Input: every name, layer or pattern that selects nothing; a rank above the smaller side of a projection; no site at all.
    pub fn adapted(&self, config: &ModelConfig) -> Result<Vec<AdaptedSite>> {
        let sites: Vec<Site> = config.all_sites().into_iter().map(|(_, site)| site).collect();
        Error::both(
            Error::both(self.check_names(config, &sites), self.check_layers(config)),
            self.check_excluded(config, &sites),
        )?;
        let chosen = self.chosen(config, sites)?;
        // PEFT takes layers of a tower behind the state that is used, too; alone they would train nothing.
        let tensors = config.whole_tensors();
        if !chosen.iter().any(|site| tensors.contains_key(&format!("{}.weight", site.module))) {
            return Err(Error::input(Place::setting("adapter.targets"), "take no projection of the base that is used")
                .hint("`adapter.exclude` and `adapter.layers` narrow them"));
        }
        let paths: Vec<Vec<&str>> = chosen.iter().map(|site| config.paths_of(site)).collect();
        let ranks = self.rank_pattern.values_of("adapter.rank_pattern", &paths);
        let alphas = self.alpha_pattern.values_of("adapter.alpha_pattern", &paths);
        let (ranks, alphas) = Error::both(ranks, alphas)?;
        let mut errors = Vec::new();
        let mut adapted = Vec::with_capacity(chosen.len());
        for ((site, own_rank), alpha) in chosen.into_iter().zip(ranks).zip(alphas) {
            let rank = own_rank.unwrap_or(self.rank);
            let most = site.rows.min(site.columns);
            if rank > most && errors.is_empty() {
                let key = if own_rank.is_some() { "adapter.rank_pattern" } else { "adapter.rank" };
                let (module, rows, columns) = (&site.module, site.rows, site.columns);
                let message = format!("is {rank}, above the {most} of {module} ({rows} x {columns})");
                errors.push(Error::input(Place::setting(key), message));
            }
            let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
            adapted.push(AdaptedSite { site, rank, scale: alpha.unwrap_or(self.alpha) / divisor });
        }
        Error::none_of(errors, adapted)
    }

    /// The sites that the targets take and nothing else leaves out.
    fn chosen(&self, config: &ModelConfig, sites: Vec<Site>) -> Result<Vec<Site>> {
        let targets = match &self.targets {
            Targets::Modules(modules) => {
                let of_vision = selection("adapter.targets", &beside_the_decoder(modules, &sites, config))?;
                Some([selection("adapter.targets", modules)?, of_vision])
            }
            Targets::Attention | Targets::AllLinear => None,
        };
        let excluded = self.exclude.as_ref().map(|modules| selection("adapter.exclude", modules)).transpose()?;
        let mut chosen = Vec::new();
        for site in sites {
            let paths = config.paths_of(&site);
            let is_target = match (&self.targets, &targets) {
                (Targets::Attention, _) => site.kind == SiteKind::Attention,
                (Targets::AllLinear, _) => matches!(site.kind, SiteKind::Attention | SiteKind::Mlp),
                (Targets::Modules(_), Some([of_decoder, of_vision])) => {
                    let targets = if site.kind.is_of_vision() { of_vision } else { of_decoder };
                    matches_any("adapter.targets", targets, &paths)?
                }
                (Targets::Modules(_), None) => false,
            };
            let is_excluded =
                excluded.as_ref().map(|excluded| matches_any("adapter.exclude", excluded, &paths)).transpose()?;
            // As in PEFT, a whole path is taken as it is; only ends of paths are narrowed to layers.
            let is_in_layers = self.layers.as_ref().is_none_or(|layers| {
                let is_listed = self.targets.listed().iter().any(|name| paths.contains(&name.as_str()));
                is_listed || site.layer.is_some_and(|layer| layers.contains(&layer))
            });
            if is_target && is_in_layers && !is_excluded.unwrap_or(false) && !self.saves(&paths) {
                chosen.push(site);
            }
        }
        Ok(chosen)
    }

    /// Whether a module that transformers knows by `paths`, or one around it, is saved as a whole.
    fn saves(&self, paths: &[&str]) -> bool {
        let is_within = |path: &str, name: &str| format!(".{path}.").contains(&format!(".{name}."));
        self.modules_to_save.iter().any(|name| paths.iter().any(|path| is_within(path, name)))
    }

    /// The tensors of the base that are trained as wholes, by name: those of the modules to save, and the biases.
    ///
    /// # Errors
    /// Input: a name that is that of no such module; biases of a base that has none.
    pub fn whole(&self, config: &ModelConfig) -> Result<Vec<String>> {
        let (modules, tensors) = (config.modules(), config.whole_tensors());
        let can_be_whole = |number: usize, module: &Site| {
            module.kind == SiteKind::QkNorm || tensors.values().any(|tensor| tensor.module == number)
        };
        let mut errors = Vec::new();
        for name in &self.modules_to_save {
            let named = modules.iter().enumerate().filter(|(_, module)| is_saved_as(config, module, name));
            let found: Vec<&Site> =
                named.filter(|(number, module)| can_be_whole(*number, module)).map(|(_, module)| module).collect();
            let message = if found.is_empty() {
                format!("`{name}` is the name of no module of {}", config.family.class_name)
            } else if found.iter().any(|module| module.kind == SiteKind::QkNorm) {
                format!("`{name}` is a norm of queries or keys, which cannot be trained")
            } else {
                continue;
            };
            errors.push(
                Error::input(Place::setting("adapter.modules_to_save"), message)
                    .hint(format!("there are {}", existing(&modules).join(", "))),
            );
        }
        let adapted = if self.bias == Bias::LoraOnly { self.adapted(config)? } else { Vec::new() };
        let is_trained = |module: &Site, is_bias: bool| {
            let is_saved = self.modules_to_save.iter().any(|name| is_saved_as(config, module, name));
            let has_pair = || adapted.iter().any(|adapted| adapted.site.module == module.module);
            let is_all = self.bias == Bias::All && !module.kind.is_of_vision();
            is_saved || is_bias && (is_all || has_pair())
        };
        let trained = tensors
            .iter()
            .filter(|(_, tensor)| modules.get(tensor.module).is_some_and(|module| is_trained(module, tensor.is_bias)));
        let trained: Vec<String> = trained.map(|(name, _)| name.clone()).collect();
        if self.bias != Bias::None && !trained.iter().any(|name| name.ends_with(".bias")) {
            let message = format!("is \"{}\", and there is no such bias in the base", self.bias);
            errors.push(Error::input(Place::setting("adapter.bias"), message).hint("leave it out"));
        }
        Error::none_of(errors, trained)
    }

    /// Whether every listed name is that of a module, and the pattern that of any.
    fn check_names(&self, config: &ModelConfig, sites: &[Site]) -> Result<()> {
        let Targets::Modules(modules) = &self.targets else { return Ok(()) };
        check_each("adapter.targets", modules, config, sites)
    }

    fn check_excluded(&self, config: &ModelConfig, sites: &[Site]) -> Result<()> {
        self.exclude.as_ref().map_or(Ok(()), |modules| check_each("adapter.exclude", modules, config, sites))
    }

    fn check_layers(&self, config: &ModelConfig) -> Result<()> {
        let beyond = self.layers.iter().flatten().find(|layer| **layer >= config.layers);
        beyond.map_or(Ok(()), |layer| {
            let message = format!("names layer {layer}; the base has layers 0 to {}", config.layers - 1);
            Err(Error::input(Place::setting("adapter.layers"), message))
        })
    }

    /// Names for PEFT's `target_modules` that take the same sites, and no more.
    ///
    /// # Errors
    /// Those of [`Self::adapted`].
    pub fn target_names(&self, config: &ModelConfig) -> Result<Vec<String>> {
        let adapted = self.adapted(config)?;
        let path_of = |site: &Site| config.transformers_path(&site.module).to_owned();
        // The other parts of a larger model have modules with the same ends of their paths.
        if config.is_part() {
            return Ok(adapted.iter().map(|adapted| path_of(&adapted.site)).collect());
        }
        let sites = config.sites();
        let is_taken = |path: &str| adapted.iter().any(|adapted| adapted.site.module == path);
        let takes_no_other =
            |name: &str| sites.iter().all(|site| is_taken(&site.module) || !config.is_named(site, name));
        let mut names: Vec<String> = Vec::new();
        for name in self.targets.listed() {
            let is_used = adapted.iter().any(|adapted| config.is_named(&adapted.site, name));
            if is_used && takes_no_other(name) {
                names.push(config.transformers_path(name).to_owned());
            }
        }
        for AdaptedSite { site, .. } in &adapted {
            if names.iter().any(|name| config.is_named(site, name)) {
                continue;
            }
            // The shortest end of the path that takes no site beyond the choice, and says nothing of layers; else the path.
            let path = path_of(site);
            let starts = path.rmatch_indices('.').map(|(dot, _)| dot + 1);
            let ends = starts.map(|start| &path[start..]);
            let mut ends = ends.take_while(|end| !end.starts_with(|symbol: char| symbol.is_ascii_digit()));
            let fitting = ends.find(|end| takes_no_other(end)).map(str::to_owned);
            names.push(fitting.unwrap_or(path));
        }
        Ok(names)
    }
}

/// Whether the name of a module to save takes `module`: the module itself, or one of a tower or a connector that it lies within.
fn is_saved_as(config: &ModelConfig, module: &Site, name: &str) -> bool {
    let is_within = || module.module.match_indices('.').any(|(end, _)| is_named(&module.module[..end], name));
    config.is_named(module, name) || module.kind.is_of_vision() && is_within()
}

/// The same choice among the modules of a tower and its connector. A name that a module of the decoder has means that one alone, whereas
/// PEFT would take those of the tower too.
fn beside_the_decoder(modules: &Modules, sites: &[Site], config: &ModelConfig) -> Modules {
    let Modules::Named(names) = modules else { return modules.clone() };
    let is_of_decoder =
        |name: &String| sites.iter().any(|site| !site.kind.is_of_vision() && config.is_named(site, name));
    Modules::Named(names.iter().filter(|name| !is_of_decoder(name)).cloned().collect())
}

fn selection(key: &'static str, modules: &Modules) -> Result<Selection> {
    modules.selection().map_err(|message| Error::input(Place::setting(key), message))
}

/// Whether any of the paths of a module is selected; `key` is the setting.
fn matches_any(key: &'static str, selection: &Selection, paths: &[&str]) -> Result<bool> {
    for path in paths {
        if selection.matches(path).map_err(|message| Error::input(Place::setting(key), message))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether every name of a list, or the pattern, takes a site.
fn check_each(key: &'static str, modules: &Modules, config: &ModelConfig, sites: &[Site]) -> Result<()> {
    let unknown: Vec<String> = match modules {
        Modules::Named(names) => {
            let is_unknown = |name: &&String| !sites.iter().any(|site| config.is_named(site, name));
            names.iter().filter(is_unknown).map(|name| format!("`{name}` is the name of no projection")).collect()
        }
        Modules::Pattern(pattern) => {
            let selection = selection(key, modules)?;
            let mut matches = false;
            for site in sites {
                matches = matches || matches_any(key, &selection, &config.paths_of(site))?;
            }
            (!matches).then(|| format!("`{pattern}` matches the whole path of no projection")).into_iter().collect()
        }
    };
    let errors = unknown.into_iter().map(|finding| {
        let message = format!("{finding} of {}", config.family.class_name);
        let example = sites.first().map(|site| format!(", as in {}", site.module)).unwrap_or_default();
        Error::input(Place::setting(key), message).hint(format!("there are {}{example}", existing(sites).join(", ")))
    });
    Error::none_of(errors.collect(), ())
}

/// The last parts of all paths, each once.
pub(super) fn existing(sites: &[Site]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for site in sites {
        if !names.contains(&site.name()) {
            names.push(site.name());
        }
    }
    names
}
