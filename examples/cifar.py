"""A plain loop on CIFAR-10: what a sparse network that rewires needs beside a dense one.

    python examples/cifar.py cifar-10-batches-py --epochs 30 --checkpoint cifar.pt

The same command continues from the checkpoint. Lines with `# dsr_kernels` at the end are all that
differ from a dense training.
"""

import argparse
import os

import torch
from common import cifar10, resnet20
from torch.utils.data import DataLoader

import dsr_kernels  # dsr_kernels
from dsr_kernels.rewiring import DSR  # dsr_kernels

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--every", type=int, default=100, help="iterations between rewires")
parser.add_argument("--checkpoint", default="cifar.pt")
args = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
train_set, test_set = cifar10(args.data)
loader = DataLoader(train_set, args.batch_size, shuffle=True)
total = args.epochs * len(loader)

model = resnet20(args.width)
model = dsr_kernels.sparsify(model, sparsity=0.9, exclude=["conv1", "head"])  # dsr_kernels
model.to(device)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
DSR(model, optimizer, every=args.every, total=total).attach(on_rewire=print)  # dsr_kernels
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
start = 0
if os.path.exists(args.checkpoint):
    saved = torch.load(args.checkpoint, map_location=device)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    start = saved["epoch"]

for epoch in range(start, args.epochs):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    with torch.no_grad():
        batches = DataLoader(test_set, 500)
        right = sum((model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in batches)
    print(f"epoch {epoch + 1}: test accuracy {right / len(test_set):.2%}")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"scheduler": scheduler.state_dict(), "epoch": epoch + 1}
    torch.save(state, f"{args.checkpoint}.part")
    os.replace(f"{args.checkpoint}.part", args.checkpoint)  # whole at any moment
