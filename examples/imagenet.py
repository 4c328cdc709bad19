"""ImageNet as PyTorch's own example trains it: torchvision's models, SGD, a tenth in 30 epochs.

    python examples/imagenet.py /data/imagenet -a resnet50
    torchrun --nproc-per-node 8 examples/imagenet.py /data/imagenet -a resnet50
    python examples/imagenet.py /data/imagenet -a resnet50 --resume checkpoint.pt

The folder holds train/CLASS/*.jpg and val/CLASS/*.jpg. Lines with `# dsr_kernels` at the end are
all that differ from a dense training. No run on all of ImageNet has been made with it.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, models, transforms

import dsr_kernels  # dsr_kernels
from dsr_kernels.distributed import DistributedDataParallel  # dsr_kernels: in the place of torch's
from dsr_kernels.rewiring import DSR  # dsr_kernels

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("-a", "--arch", default="resnet50")
parser.add_argument("-j", "--workers", type=int, default=4)
parser.add_argument("--epochs", type=int, default=90)
parser.add_argument("-b", "--batch-size", type=int, default=256, help="of all processes together")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--weight-decay", type=float, default=1e-4)
parser.add_argument("-p", "--print-every", type=int, default=100)
parser.add_argument("--resume", default="", help="a checkpoint to go on from")
parser.add_argument("--checkpoint", default="checkpoint.pt", help="written after each epoch")
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--sparsity", type=float, default=0.9)  # dsr_kernels
parser.add_argument("--every", type=int, default=1000, help="iterations between rewires")
NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    size = args.image_size
    random_crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    middle = [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
    made = []
    for part, steps in (("train", random_crop), ("val", middle)):
        todo = transforms.Compose([*steps, transforms.ToTensor(), NORMALIZE])
        images = datasets.ImageFolder(os.path.join(args.data, part), todo)
        shares = dist.is_initialized() and part == "train"
        sampler = DistributedSampler(images) if shares else None
        batch = args.batch_size // (dist.get_world_size() if dist.is_initialized() else 1)
        options = {"shuffle": part == "train" and not shares, "drop_last": part == "train"}
        options |= {"num_workers": args.workers, "pin_memory": torch.cuda.is_available()}
        made.append(DataLoader(images, batch, sampler=sampler, **options))
    return made[0], made[1]


def train_epoch(loader, model, optimizer, device, epoch, args) -> None:
    model.train()
    begun, seen = time.time(), 0
    for i, (images, labels) in enumerate(loader):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(labels)
        if i % args.print_every == 0:
            speed = seen / (time.time() - begun)
            print(f"epoch {epoch} batch {i}/{len(loader)}: loss {loss.item():.4f}, {speed:.0f}/s")


@torch.no_grad()
def validate(loader, model, device) -> float:
    """The share of images whose class was found."""
    model.eval()
    found = [(model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in loader]
    return sum(found) / len(loader.dataset)


def main() -> None:
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "WORLD_SIZE" in os.environ:  # torchrun's
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    train_loader, val_loader = loaders(args)

    model = models.get_model(args.arch, num_classes=len(val_loader.dataset.classes))
    model = dsr_kernels.sparsify(model, args.sparsity)  # dsr_kernels
    model.to(device)
    net = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    total = args.epochs * len(train_loader)
    DSR(net, optimizer, every=args.every, total=total).attach(  # dsr_kernels
        on_rewire=print if is_first else None  # dsr_kernels
    )  # dsr_kernels
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    start = 0
    if args.resume:
        saved = torch.load(args.resume, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        start = saved["epoch"]

    for epoch in range(start, args.epochs):
        if dist.is_initialized():
            train_loader.sampler.set_epoch(epoch)
        train_epoch(train_loader, net, optimizer, device, epoch, args)
        scheduler.step()
        if is_first:
            print(f"epoch {epoch}: accuracy {validate(val_loader, model, device):.2%}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"scheduler": scheduler.state_dict(), "epoch": epoch + 1}
            torch.save(state, f"{args.checkpoint}.part")
            os.replace(f"{args.checkpoint}.part", args.checkpoint)  # whole at any moment
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
