from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

train = load_dataset("json", data_files={"train": "data/pairs.jsonl", "validation": "data/pairs_valid.jsonl"})
config = DPOConfig(
    output_dir="out/dpo-script",
    beta=0.3,
    loss_type="ipo",
    per_device_train_batch_size=2,
    learning_rate=5e-6,
    bf16=True,
    gradient_checkpointing=True,
    num_train_epochs=1,
    report_to="none",
)
trainer = DPOTrainer(
    "Qwen/Qwen2.5-0.5B-Instruct",
    args=config,
    train_dataset=train["train"],
    eval_dataset=train["validation"],
    peft_config=LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules="all-linear",
        modules_to_save=None,
    ),
)
