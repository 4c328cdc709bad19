"""Accelerate on CIFAR-10, with gradient accumulation and checkpoints by `save_state`.

    accelerate launch examples/accelerate_loop.py cifar-10-batches-py --folder runs/accelerate

The same command continues from the folder. Lines with `# dsr_kernels` at the end are all that
differ from a dense training. For one process: Accelerate wraps in torch's own
DistributedDataParallel, under which patterns may not change.
"""

import argparse
import os
import shutil

import torch
from accelerate import Accelerator
from common import cifar10, resnet20
from torch.utils.data import DataLoader

import dsr_kernels  # dsr_kernels
from dsr_kernels.rewiring import DSR  # dsr_kernels

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--accumulate", type=int, default=2)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--every", type=int, default=100, help="iterations between rewires")
parser.add_argument("--folder", default="runs/accelerate")
args = parser.parse_args()

accelerator = Accelerator(gradient_accumulation_steps=args.accumulate)
train_set, _ = cifar10(args.data)
loader = DataLoader(train_set, args.batch_size, shuffle=True)
total = args.epochs * -(-len(loader) // args.accumulate)

model = resnet20(args.width)
model = dsr_kernels.sparsify(model, sparsity=0.9, exclude=["conv1", "head"])  # dsr_kernels
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
DSR(model, optimizer, every=args.every, total=total).attach(on_rewire=print)  # dsr_kernels
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
start = 0
last = os.path.join(args.folder, "last")  # holds the name of the last whole state
if os.path.exists(last):
    with open(last) as file:
        accelerator.load_state(os.path.join(args.folder, file.read()))
    start = scheduler.scheduler.last_epoch * args.epochs // total

for epoch in range(start, args.epochs):
    for images, labels in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    accelerator.save_state(os.path.join(args.folder, str(epoch + 1)))
    with open(f"{last}.part", "w") as file:
        file.write(str(epoch + 1))
    os.replace(f"{last}.part", last)
    shutil.rmtree(os.path.join(args.folder, str(epoch)), ignore_errors=True)  # the one before
