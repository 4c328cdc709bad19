"""transformers' Trainer on CIFAR-10, with the optimizer that it makes itself.

    python examples/hf_trainer.py cifar-10-batches-py --folder runs/trainer

The same command continues from the folder's last checkpoint. Lines with `# dsr_kernels` at the end
are all that differ from a dense training. For one process: the Trainer wraps in torch's own
DistributedDataParallel, under which patterns may not change.
"""

import argparse

import torch
from common import cifar10, resnet20
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import dsr_kernels  # dsr_kernels
from dsr_kernels.integrations.transformers import RewirerCallback  # dsr_kernels
from dsr_kernels.rewiring import DSR  # dsr_kernels

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--every", type=int, default=100, help="iterations between rewires")
parser.add_argument("--folder", default="runs/trainer")
args = parser.parse_args()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = resnet20(args.width)
        self.model = dsr_kernels.sparsify(self.model, 0.9, exclude=["conv1", "head"])  # dsr_kernels

    def forward(self, images, labels=None):
        logits = self.model(images)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def rewirer(model, optimizer, total):  # dsr_kernels
    return DSR(model, optimizer, every=args.every, total=total)  # dsr_kernels


def together(rows):
    images, labels = zip(*rows, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


train_set, test_set = cifar10(args.data)
callbacks = []
callbacks.append(RewirerCallback(rewirer, on_rewire=print))  # dsr_kernels
settings = TrainingArguments(
    args.folder,
    num_train_epochs=args.epochs,
    per_device_train_batch_size=args.batch_size,
    learning_rate=1e-3,
    weight_decay=0.01,
    lr_scheduler_type="cosine",
    save_strategy="epoch",
    report_to="none",
    remove_unused_columns=False,
)
trainer = Trainer(
    Classifier(),
    settings,
    data_collator=together,
    train_dataset=train_set,
    eval_dataset=test_set,
    compute_metrics=lambda out: {"accuracy": (out.predictions.argmax(1) == out.label_ids).mean()},
    callbacks=callbacks,
)
try:
    last = get_last_checkpoint(args.folder)
except FileNotFoundError:
    last = None
trainer.train(resume_from_checkpoint=last)
print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.2%}")
