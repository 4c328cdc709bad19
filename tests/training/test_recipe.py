"""Recipes: the packaged ones say what the paper says; overrides are typed; mistakes are named."""

import pytest

from dsr_kernels.errors import UsageError
from dsr_kernels.training.recipe import load as recipes
from dsr_kernels.training.recipe.rewirer import takes
from dsr_kernels.training.recipe.schema import at


def test_wrn_cifar10_is_the_papers():
    r = recipes.load("wrn28_2-cifar10")
    assert (r.method, r.model.name, r.model.width, r.model.sparsity) == ("dsr", "wrn28", 2, 0.9)
    assert (r.training.epochs, r.training.batch_size) == (200, 100)
    assert r.optimizer.lr == [(0, 0.1), (60, 0.02), (120, 0.004), (160, 0.0008)]
    assert (r.optimizer.momentum, r.optimizer.nesterov) == (0.9, True)
    assert (r.optimizer.weight_decay, r.optimizer.l1) == (5e-4, 0)
    assert r.rewiring.prune_count == 20_000
    assert r.rewiring.every == [(0, 100), (25, 200), (80, 400), (140, 800)]
    assert (r.rewiring.stop_epoch, r.rewiring.initial_threshold) == (190, 1e-3)
    assert (r.rewiring.tolerance, r.data.augment, r.data.pad) == (0.1, "crop_flip", 4)
    static = recipes.load("wrn28_2-cifar10", ["method=static"])
    assert static.training.epochs == 400
    assert static.optimizer.lr == [(0, 0.1), (120, 0.02), (220, 0.004), (350, 0.0008)]


def test_lenet_mnist_is_the_papers():
    r = recipes.load("lenet300-mnist")
    assert (r.training.epochs, r.training.batch_size) == (100, 100)
    assert r.optimizer.lr == [(0, 0.1), (25, 0.02), (50, 0.004), (75, 0.0008)]
    assert (r.optimizer.weight_decay, r.optimizer.l1) == (0, 1e-4)
    assert r.rewiring.prune_count == 600
    assert r.rewiring.every == [(0, 100), (25, 200), (50, 400), (75, 800)]
    assert r.rewiring.stop_epoch == 90
    for method in ("dense", "thin_dense", "static"):
        variant = recipes.load("lenet300-mnist", [f"method={method}"])
        assert (variant.optimizer.weight_decay, variant.optimizer.l1) == (1e-4, 0)


def test_resnet50_imagenet_is_the_papers():
    r = recipes.load("resnet50-imagenet")
    assert (r.method, r.model.name, r.model.width, r.model.sparsity) == ("dsr", "resnet50", 0, 0.9)
    assert (r.data.name, r.data.augment, r.data.image_size) == ("imagenet", "resized_crop_flip", 0)
    assert (r.training.epochs, r.training.batch_size) == (100, 256)
    assert r.optimizer.lr == [(0, 0.1), (30, 0.01), (60, 0.001), (90, 0.0001)]
    assert (r.optimizer.momentum, r.optimizer.nesterov) == (0.9, True)
    assert (r.optimizer.weight_decay, r.optimizer.l1) == (1e-4, 0)
    assert (r.rewiring.prune_count, r.rewiring.stop_epoch) == (400_000, 95)
    assert r.rewiring.every == [(0, 1000), (25, 2000), (50, 4000), (75, 8000)]
    assert (r.rewiring.initial_threshold, r.rewiring.tolerance) == (1e-3, 0.1)
    for method, width in (("static", 0), ("thin_dense", 0.46)):
        variant = recipes.load("resnet50-imagenet", [f"method={method}"])
        assert (variant.training.epochs, variant.model.width) == (200, width)
        assert variant.optimizer.lr == [(0, 0.1), (60, 0.01), (120, 0.001), (180, 0.0001)]


@pytest.mark.parametrize(
    "sparsity, width, fraction",
    [
        (0.9, 0.75, 0.138),
        (0.8, 0.98, 0.07),
        (0.7, 1.15, 0.046),
        (0.6, 1.33, 0.034),
        (0.5, 1.47, 0.028),
        (0.95, 0, 0.3),  # the method's own
    ],
)
def test_what_the_paper_gives_for_each_sparsity(sparsity, width, fraction):
    """Of another sparsity than the paper's, width and fraction are not those of 0.9."""

    def load(method: str, name: str = "wrn28_2-cifar10"):
        return recipes.load(name, [f"method={method}", f"model.sparsity={sparsity}"])

    thin = load("thin_dense")
    assert (thin.model.width, thin.training.epochs) == (width, 400)
    assert thin.optimizer.lr == [(0, 0.1), (120, 0.02), (220, 0.004), (350, 0.0008)]
    assert load("set").rewiring.fraction == fraction
    assert load("thin_dense", "resnet50-imagenet").model.width == {0.9: 0.46, 0.8: 0.54}.get(
        sparsity, 0
    )


def test_variants_by_sparsity_are_checked_and_overridden(tmp_path):
    path = tmp_path / "own.toml"
    head = recipes.dump(recipes.load("lenet300-digits", ["model.sparsity=0.9"]))

    def load(table: str, *changes: str):
        path.write_text(f"{head}\n{table}\n")
        return recipes.load(str(path), list(changes))

    table = '[variant.dsr]\ntraining.epochs = 2\n[variant.dsr.at."0.90"]\ntraining.epochs = 3'
    assert load(table).training.epochs == 3  # the file's own sparsity
    assert load(table, "model.sparsity=0.8").training.epochs == 2
    assert load(table, "training.epochs=4").training.epochs == 4
    for wrong in ("at.high.seed = 1", "at = 3", 'at."0.9" = 3'):
        with pytest.raises(UsageError, match=r"\[variant.dsr.at\]: expected tables named by"):
            load(f"[variant.dsr]\n{wrong}")
    with pytest.raises(UsageError, match=r"unknown key 'training.epoch'; did you mean"):
        load('[variant.dsr.at."0.9"]\ntraining.epoch = 3')


@pytest.mark.parametrize(
    "changes, words",
    [
        (["training.epochs=9"], "rewiring.stop_epoch: expected at most training.epochs = 9, .* 18"),
        (["rewiring.begin_epoch=18"], "begin_epoch: expected less than .* epoch 18, got 18"),
        (["rewiring.stop_epoch=0", "rewiring.begin_epoch=20"], "end of pruning, epoch 20, got 20"),
        (["rewiring.initial_sparsity=0.96"], "initial_sparsity: expected at most .* 0.95, got"),
    ],
)
def test_pruning_that_would_not_reach_the_sparsity_is_refused(changes, words):
    fine = ["method=gmp", "training.epochs=18", "rewiring.initial_sparsity=0.95"]
    assert recipes.load("lenet300-digits", fine).rewiring.stop_epoch == 18
    with pytest.raises(UsageError, match=words):
        recipes.load("lenet300-digits", ["method=gmp", *changes])
    of_all = [change for change in changes if takes("static", change.partition("=")[0])]
    recipes.load("lenet300-digits", ["method=static", *of_all])  # nothing to other methods


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("method", ["dsr", "static", "dense", "thin_dense"])
def test_dump_and_load_give_the_same_recipe(name, method, tmp_path):
    recipe = recipes.load(name, [f"method={method}", "optimizer.l1=1.5e-7"], seed=7)
    path = tmp_path / "recipe.toml"
    path.write_text(recipes.dump(recipe))
    again = recipes.load(str(path))
    assert again == recipe and again.seed == 7
    assert recipes.difference(recipe, again) is None


def test_recipes_that_differ_in_their_description_train_alike():
    recipe = recipes.load("lenet300-digits")
    reworded = recipes.load("lenet300-digits", ["description=in other words"])
    assert recipes.difference(recipe, reworded) is None
    other = recipes.load("lenet300-digits", ["seed=7"])
    assert recipes.difference(recipe, other) == "seed: 0 and 7"


def test_default_comes_first_and_every_recipe_describes_itself():
    assert recipes.names()[0] == recipes.DEFAULT == "wrn28_2-digits"
    assert all(recipes.load(name).description for name in recipes.names())


def test_overrides_are_typed_and_win_over_variants():
    r = recipes.load(
        "lenet300-mnist",
        [
            "training.epochs=3",
            "model.sparsity=.5",
            "optimizer.nesterov=false",
            "name=3",
            "optimizer.lr=[[0, 1], [2.5, 0.5]]",
            "method=static",
            "optimizer.l1=0.25",
        ],
    )
    assert (r.training.epochs, r.model.sparsity, r.optimizer.nesterov) == (3, 0.5, False)
    assert (r.name, r.optimizer.lr, r.optimizer.l1) == ("3", [(0, 1), (2.5, 0.5)], 0.25)
    assert recipes.load("lenet300-mnist", ["optimizer.lr=0.3"]).optimizer.lr == [(0, 0.3)]


@pytest.mark.parametrize(
    "override,message",
    [
        ("epochs=3", "unknown key 'epochs'; did you mean training.epochs?"),
        ("trainin.epoch=3", "unknown key 'trainin.epoch'; did you mean training.epochs?"),
        ("xyzzy=3", "unknown key 'xyzzy'; expected one of name, description"),
        ("training=3", "training is a table: set one of training.epochs"),
        ("method=drs", "method: unknown value 'drs'; did you mean dsr?"),
        ("data.name=fashion-mnist", "unknown value 'fashion-mnist'; did you mean fashion_mnist?"),
        ("training.precision=bf16", "unknown value 'bf16'; did you mean bfloat16?"),
        ("training.precision=tf32", "training.precision: unknown value 'tf32'; "),
        ("training.epochs=2.5", "training.epochs: expected a whole number, got 2.5"),
        ("training.epochs=many", "training.epochs: expected a whole number, got 'many'"),
        ("training.epochs=0", "training.epochs: expected a value at least 1, got 0"),
        ("training.epochs=true", "training.epochs: expected a whole number, got True"),
        ("model.sparsity=1", "model.sparsity: expected a value below 1.0, got 1.0"),
        ("model.sparsity=-0.1", "model.sparsity: expected a value at least 0.0, got -0.1"),
        ("model.sparsity=nan", "model.sparsity: expected a finite number, got nan"),
        ("optimizer.nesterov=yes", "optimizer.nesterov: expected true or false, got 'yes'"),
        ("optimizer.lr=[[5, 0.1]]", "optimizer.lr: expected a number or"),
        ("optimizer.lr=[]", "optimizer.lr: expected at least one value"),
        ("optimizer.lr=0", "optimizer.lr: expected a number or"),
        ("rewiring.every=[[0, 1], [0, 2]]", "rewiring.every: expected a number or"),
        ("rewiring.every=2.5", "rewiring.every: expected whole iterations"),
        ("rewiring.every=[]", "rewiring.every is missing"),
        ("rewiring.prune_fraction=0.1", "set one of rewiring.prune_count and"),
        ("optimizer.momentum=0", "optimizer.nesterov needs optimizer.momentum"),
        ("seed", "expected key=value, got 'seed'"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(UsageError) as caught:
        recipes.load("wrn28_2-digits", [override])
    assert message in str(caught.value)


def test_unknown_recipe_names_the_closest():
    with pytest.raises(UsageError, match="did you mean wrn28_2-cifar10"):
        recipes.load("wrn28-cifar10")
    with pytest.raises(UsageError, match="there is no file nowhere"):
        recipes.load("nowhere.toml")


def test_files_with_mistakes_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[model\n")
    with pytest.raises(UsageError, match="not a recipe in TOML"):
        recipes.load(str(path))
    path.write_text('[model]\nname = "wrn28"\nwidht = 3\n')
    with pytest.raises(UsageError, match=r"unknown key 'model.widht'; did you mean model.width"):
        recipes.load(str(path))
    path.write_text('[model]\nname = "wrn28"\n')
    with pytest.raises(UsageError, match="recipe: data is missing"):
        recipes.load(str(path))


@pytest.mark.parametrize(
    "text,message",
    [
        ("[variant.sttic]", r"\[variant.sttic\]: unknown method 'sttic'; did you mean static\?"),
        ("[variant.xyzzy.training]", "unknown method 'xyzzy'; expected one of dsr, static"),
        ("[variant]\nstatic = 3", r"expected a table \[variant.static\], got 3"),
        ("[[variant]]", r"expected tables \[variant.METHOD\], got variant = "),
    ],
)
def test_a_variant_of_no_method_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(recipes.dump(recipes.load("wrn28_2-digits")) + "\n" + text + "\n")
    with pytest.raises(UsageError, match=message):
        recipes.load(str(path))


def test_schedule_values_by_epoch():
    schedule = [(0.0, 0.1), (2.5, 0.02), (4.0, 0.004)]
    values = [at(schedule, epoch) for epoch in (0, 2.49, 2.5, 3.99, 4, 99)]
    assert values == [0.1, 0.1, 0.02, 0.02, 0.004, 0.004]


@pytest.mark.parametrize(
    "value, message",
    [
        ('{ a = 1, "b.*" = [1, "x", true] }', ""),
        ("{ a = 1979-05-27 }", r"model.arguments.a: expected a string, a number, true, false or a"),
        ("{ a = nan }", r"model.arguments.a: expected a string"),
        ("[1]", r"model.arguments: expected a table such as"),
        ("x", r"--set model.arguments: expected { name = value, ... }, got 'x'"),
    ],
)
def test_tables_of_a_users_own_names(value, message, tmp_path):
    changes = [f"model.arguments={value}", "model.name=timm:resnet50"]
    if message:
        with pytest.raises(UsageError, match=message):
            recipes.load("lenet300-digits", changes)
        return
    recipe = recipes.load("lenet300-digits", changes)
    assert recipe.model.arguments == {"a": 1, "b.*": [1, "x", True]}
    path = tmp_path / "r.toml"
    path.write_text(recipes.dump(recipe))
    assert recipes.load(str(path)) == recipe
    other = recipes.load("lenet300-digits", ["model.name=timm:resnet50"])
    assert recipes.difference(recipe, other).startswith("model.arguments: ")


@pytest.mark.parametrize("name", ["timm:resnet50", "torchvision:vit_b_16", "a.b:c", "a:B.c"])
def test_models_by_reference(name):
    assert recipes.load("lenet300-digits", [f"model.name={name}"]).model.name == name


@pytest.mark.parametrize("name", ["resnet5", "tim:res net", "a.b:", ":c", "a-b:c", "a..b:c"])
def test_a_name_that_refers_to_nothing_is_refused(name):
    with pytest.raises(UsageError, match=r"model.name: unknown value .*, nor timm:NAME or torchvi"):
        recipes.load("lenet300-digits", [f"model.name={name}"])


def test_awkward_strings_survive(tmp_path):
    recipe = recipes.load("wrn28_2-digits", ['description=a "quoted" \\ back\tslash, ü 二'])
    path = tmp_path / "r.toml"
    path.write_text(recipes.dump(recipe), encoding="utf-8")
    assert recipes.load(str(path)) == recipe
