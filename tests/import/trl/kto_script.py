from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import KTOConfig, KTOTrainer

model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct", dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
trainer = KTOTrainer(
    model=model,
    args=KTOConfig(
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.5,
        output_dir="out/kto",
        learning_rate=LEARNING_RATE,
        eval_strategy="no",
    ),
    train_dataset=data,
)
