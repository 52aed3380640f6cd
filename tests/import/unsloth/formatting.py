from unsloth import FastLanguageModel
from trl import SFTTrainer, SFTConfig
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="./models/qwen",
    max_seq_length=512,
    load_in_4bit=False,
    token=None,
    rope_scaling=None,
    fix_tokenizer=True,
)
model = FastLanguageModel.get_peft_model(
    model,
    r=4,
    lora_alpha=8,
    layers_to_transform=None,
    modules_to_save=None,
    init_lora_weights=True,
)
trainer = SFTTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=rows,
    formatting_func=lambda row: [row["q"] + row["a"]],
    data_collator=None,
    compute_metrics=None,
    packing=True,
    args=SFTConfig(
        max_steps=200,
        warmup_steps=0.1,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=50,
        eval_strategy="no",
        output_dir="outputs/qwen",
    ),
)
