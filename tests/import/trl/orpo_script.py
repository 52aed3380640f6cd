from peft import LoraConfig
from trl import ORPOConfig, ORPOTrainer

orpo = ORPOConfig(
    output_dir="out/orpo",
    beta=0.05,
    max_length=1024,
    max_prompt_length=512,
    learning_rate=8e-6,
    lr_scheduler_type="linear",
    warmup_steps=10,
    num_train_epochs=1,
    remove_unused_columns=False,
)
