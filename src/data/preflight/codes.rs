//! The list of all kinds of findings. `burnish explain`, the reports and `docs/findings.md` take their texts from here.

use super::catalogue::{Entry, Severity};

/// Declares [`Code`]: variant, code, severity, finding, harm, remedy.
macro_rules! codes {
    ($($variant:ident $code:literal $severity:ident $title:literal $why:literal $remedy:literal;)*) => {
        /// A kind of finding.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $variant,)*
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The texts of the code.
            pub fn entry(self) -> &'static Entry {
                match self {
                    $(Self::$variant => &Entry {
                        code: $code, severity: Severity::$severity, title: $title, why: $why, remedy: $remedy,
                    },)*
                }
            }
        }
    };
}

codes! {
    IdenticalPair "D001" Warning
        "chosen and rejected answer are the same"
        "The pair says nothing, and a model that cannot tell the two apart keeps the loss of a coin there."
        "Remove the row, or look up which answers were meant.";
    SwappedPair "D002" Warning
        "another row prefers the same two answers the other way round"
        "The two rows pull in opposite directions; one of them is probably swapped."
        "Decide which answer is better, and remove or turn round the other row.";
    LengthBias "D003" Warning
        "the chosen answers are the longer or the shorter ones by a rule"
        "Length is the easiest difference to learn: the model learns to answer at greater or smaller length, whatever the content."
        "Where length is not what you want to teach, add pairs in which the other length is the better one, or set `train.length_normalised` under `dpo`.";
    OneLabel "D004" Error
        "all examples have the same label"
        "Without examples of another kind there is nothing to tell apart."
        "Add examples with other labels; of answers with labels, learn the desirable ones with `train.objective = \"sft\"`.";
    RareLabel "D005" Warning
        "a label has at most a tenth of the examples of another"
        "The model learns to give the frequent label whenever in doubt, and the accuracy hides it."
        "Add examples of the rare label, or set `train.label_weights = \"balanced\"`; judge by the macro F1.";
    UnseenLabel "D006" Warning
        "the validation row has a label that no training row has"
        "The label is never learned, so the row counts as wrong whatever is trained."
        "Correct the label where it is misspelt, or add training rows with it.";

    ExactDuplicate "D101" Warning
        "the row is the same as an earlier one"
        "A row that stands there n times is trained n times as hard, and the model learns it by heart."
        "Remove the copies: `burnish data clean FILE --dedupe --out NEW`. To give a row more weight on purpose, ignore this.";
    NearDuplicate "D102" Note
        "the row is almost the same as an earlier one"
        "Prompt and answer differ from an earlier row in a few letters only: it counts nearly twice, and it makes a random validation split too easy."
        "Look at a few of the lines; `burnish data clean FILE --dedupe=near --out NEW` removes them.";
    Contradiction "D103" Warning
        "another row has the same prompt and another answer"
        "The loss pulls towards both answers and reaches neither. For open tasks several answers are fine; for facts, labels and extraction one of them is wrong."
        "Decide which answer is right, or add to the prompt what makes the difference.";
    RepeatedAnswer "D104" Warning
        "the same long answer stands under several prompts"
        "One text under many prompts is usually an error message or a template that was not filled; the model learns to give it whenever in doubt."
        "Look at the answer; remove the rows if it is no real answer.";
    OneAnswer "D105" Warning
        "nearly all answers are the same"
        "A model that always gives this answer is right nearly always, so it learns nothing about the prompts."
        "Add rows with other answers, or take away some of these.";
    FewRows "D106" Note
        "the file has fewer than 10 examples"
        "So few examples are learned by heart in a few steps."
        "Collect more examples; 100 to 1,000 good ones are a usual start.";

    LeakedRow "D201" Warning
        "the validation row is a training row too"
        "The validation loss flatters: it measures what the model has seen. Early stopping and the best adapter are chosen by it."
        "Remove the rows from one of the two files.";
    NearlyLeakedRow "D202" Warning
        "the validation row is almost the same as a training row"
        "The validation loss flatters, though less than with exact copies."
        "Look at a few of the lines; split by groups (same customer, same document) rather than by rows.";
    LeakedPrompt "D203" Warning
        "the prompt of the validation row stands in the training data with another answer"
        "The model was trained to give another answer to this very prompt: the validation loss says little."
        "Keep all rows of one prompt on one side.";
    AllLeaked "D204" Error
        "every validation row is a training row"
        "The validation loss then measures how well the training data was learned by heart, and nothing else."
        "Choose a validation file of other rows, or set `data.valid_fraction`.";
    FewValidation "D205" Note
        "the validation data has fewer than 10 examples"
        "Below 10 examples no verdict is given, and the best adapter is chosen by chance."
        "Keep at least 30 examples for validation.";
    NoValidation "D206" Note
        "there is no validation data"
        "Nothing shows when the model begins to learn by heart; the last adapter is kept, whatever its worth."
        "Name a file in `data.valid`, or set `data.valid_fraction = 0.1`.";

    EmptyAnswer "D301" Warning
        "an answer is empty"
        "Only the end of the answer is trained: the model learns to say nothing."
        "Fill in the answers or remove the rows.";
    AllAnswersEmpty "D302" Error
        "every answer is empty"
        "There is nothing to learn."
        "Check which column holds the answers.";
    TruncatedAnswer "D303" Warning
        "an answer seems to be cut off"
        "It ends within a sentence, a bracket or a JSON value. The model learns to stop in the middle."
        "Generate or copy the answers again with a higher limit of length.";
    PlaceholderAnswer "D304" Warning
        "an answer is a placeholder"
        "`TODO`, `N/A`, `...` and the like are no answers, and the model learns to give them."
        "Fill in the answers or remove the rows.";
    Boilerplate "D305" Note
        "an answer refuses or speaks of itself as an AI model"
        "Such phrases come from the model that wrote the data, and a few hundred of them are enough to pass on."
        "Remove the rows unless refusing is what you want to teach.";
    AnswerRepeatsPrompt "D306" Warning
        "an answer repeats its prompt"
        "The model learns to copy its prompt before it answers, or instead."
        "Cut the prompt off the answers; data that was generated often holds both.";
    RepetitiveAnswer "D307" Warning
        "an answer repeats itself over and over"
        "It comes from a model that was caught in a loop, and teaches the loop."
        "Remove the rows.";
    ThinkTags "D308" Warning
        "the think tags of an answer do not pair up"
        "An answer with `<think>` and no `</think>`, or the other way round, teaches the model to think without an end or to close what it never opened."
        "Mend the tags; an answer that was cut within its thought is best removed.";
    OpenFence "D309" Note
        "an answer opens a code block and does not close it"
        "The answer is probably cut off, and what follows it in a conversation is taken for code."
        "Close the block with ```` ``` ````.";
    RoleLabel "D310" Note
        "an answer begins with a label such as `Assistant:`"
        "The label is trained as a part of the answer, and the chat template writes its own."
        "Cut the label off.";
    RunOnAnswer "D311" Warning
        "an answer goes on with the next turn of the user"
        "The model learns to speak for the user and not to stop."
        "Cut the answer where the next turn begins, or make turns of it.";
    BrokenJson "D312" Warning
        "an answer is no valid JSON, and the others are"
        "A program that reads the answers will fail as often as the data does."
        "Mend the answer; a missing bracket at the end means that it was cut off.";
    SameLength "D313" Warning
        "several of the longest answers have the same length"
        "A limit cut them off: the model learns to stop in the middle."
        "Generate or copy the answers again with a higher limit.";
    AnswerEdge "D314" Note
        "an answer begins or ends with white space, and most do not, or the other way round"
        "White space at the edges changes the first token of the answer, so the row teaches another way to begin."
        "Make it the same in every row.";
    PromptEnd "D315" Note
        "the prompt ends in another way than the others"
        "In bare prompts the last characters tell the model that its answer comes now."
        "End every prompt in the same way, such as with `A: ` on a line of its own.";

    Unfilled "D316" Note
        "an answer holds a placeholder that was not filled, such as `[Your Name]`"
        "The model learns to write the placeholder."
        "Fill it in, unless the answer is meant to be a form.";

    ReplacementCharacter "D401" Warning
        "the text holds U+FFFD, the mark of a character that was lost"
        "The text was decoded with the wrong encoding, and the characters are gone for good."
        "Convert the source to UTF-8 again.";
    Mojibake "D402" Warning
        "the text holds UTF-8 that was read as Latin-1, such as `Ã©` for `é`"
        "The model learns to write the broken letters."
        "Convert the source again, or repair it with a tool such as ftfy.";
    ControlCharacter "D403" Warning
        "the text holds control characters"
        "Zero bytes, escape sequences and the like come from terminals and binary files; they are trained like letters."
        "Remove them.";
    InvisibleCharacter "D404" Note
        "the text holds invisible characters, such as zero-width spaces or direction marks"
        "They split words into other tokens, and nobody sees why. They can also hide instructions."
        "Remove them, unless the language needs them.";
    HtmlEntities "D405" Note
        "the text holds HTML entities, such as `&amp;`"
        "The text was taken from a web page without decoding it; the model learns to write the entities."
        "Decode them, unless the task is about HTML.";
    EscapedText "D406" Note
        "the text spells escapes, such as \\n, instead of the characters"
        "The text was encoded twice: the model learns to write a backslash and a letter where a line should end."
        "Decode the text once more.";
    OtherScript "D407" Note
        "the answer is in another script than most"
        "A few rows in another script are often there by mistake, and they teach the model to change the language."
        "Remove them, unless the task is translation or the data is meant for several languages.";
    OtherLanguage "D408" Note
        "the answer seems to be in another language than most"
        "A few rows in another language are often there by mistake."
        "Remove them, unless the task is translation or the data is meant for several languages.";
    MixedWord "D409" Warning
        "a word mixes Latin and Cyrillic letters that look alike"
        "The word looks right and is another one for the tokenizer."
        "Replace the letters that are in the wrong script.";
    DecomposedLetters "D410" Note
        "accents are characters of their own (Unicode NFD)"
        "The same word in composed form has other tokens; users type the composed form."
        "Normalise the text to NFC.";
    TokenizerChangesText "D411" Note
        "the tokenizer cannot give the text back as it is"
        "Letters are lost or changed before training: the tokenizer lower-cases, normalises or lacks them."
        "See which letters they are with `burnish check RECIPE --show 3`; another base may know them.";
    UnknownToken "D412" Warning
        "the text holds letters that the tokenizer does not know"
        "They all become the same unknown token."
        "Remove them, or take a base whose vocabulary has them.";

    SpellsControl "D501" Warning
        "the text spells control tokens, which are encoded as ordinary letters"
        "Data may not write control tokens. Text that was rendered by a chat template beforehand is trained as spelled-out markup, which no chat will ever show."
        "Give the conversation as {\"messages\"}: the template then writes real control tokens.";
    ForeignMarkup "D502" Warning
        "the text holds the markup of another model's chat template"
        "The markup is trained as ordinary text, and the model learns to write it."
        "Take the turns apart and give them as {\"messages\"}.";
    TurnLeftOut "D503" Warning
        "the chat template does not show turns of a role"
        "The model never sees these turns, and answers as if they were not there."
        "Give the turns a role that the template knows, or choose another template.";
    KeyLeftOut "D504" Warning
        "the chat template does not show a key of the row or of a turn"
        "The model never sees it."
        "Check that the template supports it (tools, reasoning), or move the text into `content`.";
    KeyNotTrained "D505" Warning
        "a text of the assistant is shown and not trained"
        "The template shows it before the point where an answer begins, so no loss is taken on it."
        "Check whether the reasoning belongs into `content`.";
    TextChanged "D506" Warning
        "the chat template changes the text of a turn"
        "The model is trained on another text than the one in the file."
        "See it with `burnish check RECIPE --show 3`; choose another template if it should not be so.";
    TwoBegins "D507" Warning
        "the sequence begins with two begin tokens"
        "The model has never seen two in a row; the first answer tokens get worse."
        "Remove the begin token from the data or from the template.";
    NoStop "D508" Warning
        "the last trained token is no stop token"
        "The model never learns to stop, and answers go on to their limit."
        "Check with `burnish check RECIPE --show 3` where the trained part ends; the template should end a turn with a control token.";
    NoEndToken "D509" Warning
        "the tokenizer names no end token (`eos_token`): no end is trained, and answers go on to their limit"
        "The model never learns to stop."
        "Add `eos_token` to `tokenizer_config.json`.";

    OtherPrompt "D510" Warning
        "generation begins an answer otherwise than finished conversations show one"
        "The answers are trained behind another beginning than the one that generation gives."
        "Check with `burnish check RECIPE --show 3`; choose another template if the difference is more than a tag.";

    RoleNotTrained "D601" Warning
        "no loss is taken on turns of a role"
        "Only turns of the role `assistant` are trained. A misspelt role loses its turns."
        "Rename the role.";
    NothingTrained "D602" Warning
        "nothing in the row is trained, and it is left out"
        "The row has no answer, or the template does not show it."
        "Check that the row ends with a turn of the role `assistant`.";
    TurnNotTrained "D603" Warning
        "a turn of the assistant is not trained: the template shows it differently once the conversation goes on"
        "What is trained in such a turn would never be seen in a chat, so burnish leaves it out."
        "Make one row of each turn, or choose a template that shows every turn alike.";
    EndsWithUser "D604" Warning
        "the conversation ends with a turn that is not the assistant's"
        "The last turn has no answer, so nothing is learned from it."
        "Add the answer or cut the turn.";
    SameRoleTwice "D605" Note
        "two turns of one role follow each other"
        "A chat never shows this, and some templates refuse it."
        "Join the two turns into one.";
    BeginsWithAssistant "D606" Note
        "the conversation begins with the assistant"
        "The model learns to speak without a question."
        "Add the turn of the user, or cut the greeting.";
    LateSystem "D607" Warning
        "a system turn stands after the first turn"
        "Most templates show a system text only at the beginning; elsewhere it is dropped or refused."
        "Move it to the beginning.";
    EmptyPrompt "D608" Warning
        "the prompt is empty"
        "The model learns to give this answer to nothing."
        "Fill in the prompt or remove the row; texts to go on with belong into {\"text\"}.";
    KeyIgnored "D609" Note
        "a key of the row is not read"
        "Text in it is not trained. Some file formats spell their settings there."
        "Rename the key, map it with the data settings, or ignore this where it is an id or a source.";
    UnknownTool "D610" Warning
        "a turn calls a tool that the row does not declare"
        "The model learns to call tools that it was not offered."
        "Add the tool to `tools`, or mend the name.";
    BrokenArguments "D611" Warning
        "the arguments of a tool call are no JSON object"
        "The model learns calls that no program can read."
        "Mend the arguments.";
    ResultWithoutCall "D612" Warning
        "the result of a tool comes without a call before it"
        "The model is shown a result it never asked for."
        "Add the call as `tool_calls` of the assistant's turn, or remove the result.";
    SystemMissing "D613" Note
        "the row has no system text, and most have one"
        "The model learns two ways to behave, by whether there is a system text."
        "Add it, unless both are wanted.";

    TooLong "D701" Warning
        "the row is left out: it has more tokens than `data.max_seq_tokens`"
        "The row is not trained at all, and it is the longest answers that are lost."
        "Raise `data.max_seq_tokens`, or set `data.overlong = \"truncate-prompt\"`.";
    PromptCut "D702" Warning
        "the beginning of the prompt is cut off to fit into `data.max_seq_tokens`"
        "The model learns to answer without having seen the beginning."
        "Raise `data.max_seq_tokens`.";
    VeryLong "D703" Note
        "the row is more than 10 times as long as the median, and decides the memory of the run"
        "Memory is planned for the longest sequences; a few of them make every other step small."
        "Lower `data.max_seq_tokens`, or cut these rows.";
    FewTrained "D704" Note
        "less than 5% of the tokens are trained"
        "Most of the time goes into prompts on which no loss is taken."
        "Shorten the prompts, where that is possible.";

    Email "D801" Note
        "the text holds e-mail addresses"
        "A model can be made to give back what it was trained on."
        "Replace them by placeholders: `burnish data clean FILE --redact --out NEW`.";
    Phone "D802" Note
        "the text holds phone numbers"
        "A model can be made to give back what it was trained on."
        "Replace them by placeholders: `burnish data clean FILE --redact --out NEW`.";
    Card "D803" Warning
        "the text holds numbers of payment cards (with a valid check digit)"
        "A model can be made to give back what it was trained on."
        "Replace them by placeholders: `burnish data clean FILE --redact --out NEW`.";
    Iban "D804" Warning
        "the text holds bank accounts (IBAN with valid check digits)"
        "A model can be made to give back what it was trained on."
        "Replace them by placeholders: `burnish data clean FILE --redact --out NEW`.";
    NationalId "D805" Warning
        "the text holds numbers of identity cards or of social security"
        "A model can be made to give back what it was trained on."
        "Replace them by placeholders: `burnish data clean FILE --redact --out NEW`.";
    IpAddress "D806" Note
        "the text holds public IP addresses"
        "An address may lead to a person."
        "Replace them by placeholders: `burnish data clean FILE --redact --out NEW`.";
    UrlPassword "D807" Warning
        "the text holds URLs with a password"
        "A model can be made to give back what it was trained on."
        "Change the password, and redact: `burnish data clean FILE --redact --out NEW`.";
    ApiKey "D808" Warning
        "the text holds API keys, tokens or passwords"
        "A model can be made to give back what it was trained on."
        "Revoke the keys, and redact: `burnish data clean FILE --redact --out NEW`.";
    PrivateKey "D809" Warning
        "the text holds private keys"
        "A model can be made to give back what it was trained on."
        "Revoke the keys, and redact: `burnish data clean FILE --redact --out NEW`.";

    OutputUnusable "D901" Error
        "the output folder cannot be used"
        "`burnish train` refuses to start, or would fail when it saves."
        "Choose another `output.dir`, go on with the run that lies there, or make room.";
}
