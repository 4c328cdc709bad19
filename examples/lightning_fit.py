"""Lightning's Trainer on CIFAR-10.

    python examples/lightning_fit.py cifar-10-batches-py --folder runs/lightning

The same command continues from the folder's last checkpoint. Lines with `# dsr_kernels` at the end
are all that differ from a dense training.
"""

import argparse
import os

import lightning.pytorch as pl
import torch
from common import cifar10, resnet20
from torch.utils.data import DataLoader

import dsr_kernels  # dsr_kernels
from dsr_kernels.integrations.lightning import RewirerCallback  # dsr_kernels
from dsr_kernels.rewiring import DSR  # dsr_kernels

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--every", type=int, default=100, help="iterations between rewires")
parser.add_argument("--folder", default="runs/lightning")
args = parser.parse_args()


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = resnet20(args.width)
        self.model = dsr_kernels.sparsify(self.model, 0.9, exclude=["conv1", "head"])  # dsr_kernels

    def training_step(self, batch):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch):
        images, labels = batch
        accuracy = (self.model(images).argmax(1) == labels).float().mean()
        self.log("accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self):
        parameters = self.parameters()
        return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)


def rewirer(model, optimizer, total):  # dsr_kernels
    return DSR(model, optimizer, every=args.every, total=total)  # dsr_kernels


saver = pl.callbacks.ModelCheckpoint(args.folder, save_last=True)
callbacks = [saver]
callbacks.append(RewirerCallback(rewirer, on_rewire=print))  # dsr_kernels
trainer = pl.Trainer(max_epochs=args.epochs, callbacks=callbacks, logger=False, devices=1)
train_set, test_set = cifar10(args.data)
last = os.path.join(args.folder, "last.ckpt")
trainer.fit(
    Classifier(),
    DataLoader(train_set, args.batch_size, shuffle=True),
    DataLoader(test_set, 500),
    ckpt_path=last if os.path.exists(last) else None,
)
print(f"test accuracy {trainer.callback_metrics['accuracy']:.2%} after {trainer.global_step} steps")
