"""timm's models, data, optimizers, schedules and checkpoints, in the order of its train.py.

    python examples/timm_train.py /data/imagenet --model resnet50 --folder runs/timm

The same command continues from the folder's last checkpoint. The folder of images holds train and
val, a folder for each class. Lines with `# dsr_kernels` at the end are all that differ from a dense
training; timm's own train.py takes the same lines after `create_model` and `create_optimizer_v2`.
"""

import argparse
import os
from contextlib import nullcontext

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler

import dsr_kernels  # dsr_kernels
from dsr_kernels.rewiring import DSR  # dsr_kernels

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--model", default="resnet50")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("-b", "--batch-size", type=int, default=128)
parser.add_argument("--grad-accum-steps", type=int, default=1)
parser.add_argument("--opt", default="sgd")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--weight-decay", type=float, default=2e-5)
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--model-ema", action="store_true")
parser.add_argument("-j", "--workers", type=int, default=4)
parser.add_argument("--every", type=int, default=1000, help="steps between rewires")
parser.add_argument("--folder", default="runs/timm")


def loader_of(args, part: str, config: dict, device: torch.device):
    train = part == "train"
    images = create_dataset("", root=args.data, split=part, is_training=train)
    return create_loader(
        images,
        input_size=config["input_size"],
        batch_size=args.batch_size,
        is_training=train,
        mean=config["mean"],
        std=config["std"],
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        device=device,
        use_prefetcher=False,
    ), images


def main() -> None:
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(args.model, num_classes=len(os.listdir(f"{args.data}/train")))
    config = resolve_data_config({"img_size": args.image_size}, model=model)
    train_loader, _ = loader_of(args, "train", config, device)
    val_loader, val_set = loader_of(args, "val", config, device)
    steps = -(-len(train_loader) // args.grad_accum_steps)  # of the optimizer, in an epoch

    model = dsr_kernels.sparsify(model, 0.9)  # dsr_kernels
    model.to(device)
    optimizer = create_optimizer_v2(
        model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=0.9
    )
    rewirer = DSR(model, optimizer, every=args.every, total=args.epochs * steps)  # dsr_kernels
    rewirer.attach(on_rewire=print)  # dsr_kernels
    scaler = NativeScaler() if device.type == "cuda" else None
    last = os.path.join(args.folder, "last.pth.tar")
    start = 0
    if os.path.exists(last):
        start = resume_checkpoint(model, last, optimizer=optimizer, loss_scaler=scaler)
    average = None
    if args.model_ema:
        average = ModelEmaV3(model, decay=0.999, exclude_buffers=True)
        if start:
            average.module.load_state_dict(torch.load(last, weights_only=False)["state_dict_ema"])
        rewirer.follow(average.module)  # dsr_kernels
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=args.epochs, warmup_epochs=0, updates_per_epoch=steps
    )
    scheduler.step(start)
    os.makedirs(args.folder, exist_ok=True)
    saver = CheckpointSaver(
        model, optimizer, amp_scaler=scaler, model_ema=average, checkpoint_dir=args.folder
    )
    loss_of = LabelSmoothingCrossEntropy(0.1)

    for epoch in range(start, args.epochs):
        model.train()
        for i, (images, labels) in enumerate(train_loader):
            images, labels = images.to(device), labels.to(device)
            now = (i + 1) % args.grad_accum_steps == 0 or i + 1 == len(train_loader)
            with torch.autocast("cuda") if scaler else nullcontext():
                loss = loss_of(model(images), labels) / args.grad_accum_steps
            if scaler:
                scaler(loss, optimizer, parameters=model.parameters(), need_update=now)
            else:
                loss.backward()
                if now:
                    optimizer.step()
            if now:
                optimizer.zero_grad()
                if average is not None:
                    average.update(model)
        scheduler.step(epoch + 1)
        model.eval()
        with torch.no_grad():
            right = sum(
                (model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in val_loader
            )
        print(f"epoch {epoch}: accuracy {right / len(val_set):.2%}")
        saver.save_checkpoint(epoch, metric=right / len(val_set))


if __name__ == "__main__":
    main()
