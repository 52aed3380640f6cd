"""Fine-tunes with TRL and PEFT."""
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

MODEL = "mistralai/Mistral-7B-v0.1"
dataset = load_dataset("timdettmers/openassistant-guanaco", split="train")
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_use_double_quant=True,
)
model = AutoModelForCausalLM.from_pretrained(
    MODEL,
    quantization_config=quantization,
    device_map={"": 0},
    trust_remote_code=True,
)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
lora = LoraConfig(
    r=64,
    lora_alpha=16,
    lora_dropout=0.1,
    bias="none",
    task_type="CAUSAL_LM",
)
args = SFTConfig(
    output_dir="./results",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    optim="paged_adamw_32bit",
    save_steps=10,
    logging_steps=10,
    learning_rate=2e-4,
    max_grad_norm=0.3,
    max_steps=100,
    warmup_ratio=0.03,
    lr_scheduler_type="constant",
    group_by_length=True,
    dataset_text_field="text",
    max_length=512,
)
trainer = SFTTrainer(
    model=model,
    train_dataset=dataset,
    peft_config=lora,
    processing_class=tokenizer,
    args=args,
)
trainer.train()
