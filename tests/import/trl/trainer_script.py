from peft import LoraConfig
from transformers import Trainer, TrainingArguments

arguments = TrainingArguments(
    output_dir="out/trainer",
    num_train_epochs=3,
    per_device_train_batch_size=2 * 4,
    fp16=True,
    weight_decay=0.01,
    label_smoothing_factor=0.1,
    load_best_model_at_end=True,
    metric_for_best_model="eval_loss",
    save_total_limit=2,
)
config = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=["query_key_value"],
    layers_to_transform=[0, 1],
    init_lora_weights="olora",
)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=train,
    eval_dataset=valid,
    data_collator=lambda rows: collate(rows, pad=0),
    callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
)
