"""Networks of the user's own code, for the binaries that measure trained networks.

``--network=MODULE:FUNCTION`` names a function in a module of the user, which is
imported with the current directory on the path. It is called with the content of
``--variables=FILE``, or with nothing where there is no file, and returns a network
``f(x)`` of logits; best a callable pytree, such as
``jax.tree_util.Partial(apply, variables)``. Example::

  # mine.py
  def make(variables):
      return opnorm.network(MyModule(), variables)

  opnorm evaluate --network=mine:make --variables=mine.npz \
    --dataset=cifar10_mini --out=runs/mine

Files are read without executing anything that they hold.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

import experiments
import opnorm
from experiments.common import cache, options, seeds
from opnorm import analysis, attacks, data, extras, linalg, models

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()

# A value of --variables: the network has no file.
_NO_FILE = "none"
_array_shape: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct


class Own(NamedTuple):
    """A network of the user's own code.

    Attributes:
      name: "module:function" as it was given.
      variables: the file of its variables, or None.
      f: ``(B, ...) -> (B, K)`` logits.
      features: ``(B, ...) -> (B, F)``: the attribute ``features`` of what the function
        returned, or f where it has none.
      preactivations: its attribute ``preactivations``, ``(B, ...)`` to the inputs of
        each layer of nonlinearities, or None.
    """

    name: str
    variables: str | None
    f: linalg.Network
    features: linalg.Network
    preactivations: linalg.Network | None

    @property
    def label(self) -> str:
        """The name with the file of the variables, where there is one."""
        return f"{self.name} ({self.variables})" if self.variables else self.name


def define_flags() -> None:
    """Defines the flags that :func:`given` and :func:`dataset_name` read."""
    flags.DEFINE_multi_string(
        "network",
        None,
        "function that returns a network of your own, as MODULE:FUNCTION, in place of "
        "--run or beside it; the module is imported with the current directory on the "
        "path, so it runs as code. --dataset names the images to measure it on",
    )
    flags.DEFINE_multi_string(
        "variables",
        None,
        "file that the function of --network is called with: .npz, .safetensors, or a "
        "directory of orbax. Names with / in them become nested dictionaries. With "
        f"several networks one for each, {_NO_FILE} where there is none",
    )
    flags.DEFINE_boolean(
        "binary",
        False,
        "the networks of --network have one logit, (B, 1) or (B,); class 1 is chosen "
        "where it is above 0",
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "height and width of the images for --network, where the data set has images "
        "of any size; a run knows its own",
    )


def given(numbers: Sequence[int] | None = None) -> list[list[Own]]:
    """Makes the networks that --network and --variables name.

    Args:
      numbers: the seeds that ``{seed}`` in --variables stands for, or None.

    Returns:
      For each --network the networks of all seeds, one without seeds.

    Raises:
      ValueError or FileNotFoundError: for flags that do not fit each other, a module or
        a function that is not there, a file that cannot be read, or a function that
        fails or returns no network.
    """
    texts, files = flags.FLAGS.network or [], flags.FLAGS.variables or []
    if files and not texts:
        raise ValueError("variables is given without network; give --network too.")
    if files and len(files) != len(texts):
        raise ValueError(
            f"variables is {files}; give one for each network, {_NO_FILE} where there "
            f"is none, and network is {texts}."
        )
    if not texts:
        if flags.FLAGS.binary:
            raise ValueError("binary is given without network; it is for --network.")
        if flags.FLAGS.image_size is not None:
            raise ValueError(
                f"image_size is {flags.FLAGS.image_size}; it is for --network, and a "
                "run has its own."
            )
        return []
    options.check_at_least(1, flags.FLAGS["image_size"])
    found = []
    for text, file in zip(texts, files or [_NO_FILE] * len(texts), strict=True):
        paths = seeds.names("variables", file, numbers)
        found.append(
            [
                make(text, None if p == _NO_FILE else p, binary=flags.FLAGS.binary)
                for p in paths
            ]
        )
    return found


def dataset_name(dataset: str | None) -> str:
    """Returns the data set that --dataset names; ValueError where it names none."""
    if dataset is None:
        raise ValueError(
            "dataset is not given; with --network alone it names the images to measure "
            "on, such as cifar10_mini, folder:/path or npz:/file.npz."
        )
    return dataset


def make(text: str, file: str | None = None, *, binary: bool = False) -> Own:
    """Calls the function of one --network.

    Args:
      text: "module:function".
      file: the file of its variables, or None.
      binary: whether the network has one logit, which becomes two.

    Raises:
      ValueError or FileNotFoundError: as :func:`given`.
    """
    function = _function(text)
    arguments = [] if file is None else [read_variables(file)]
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        wanted = "one argument, the variables" if arguments else "no argument"
        remedy = "" if arguments else ", or --variables gives it one"
        raise ValueError(
            f"network is {text}; its function must take {wanted}{remedy}."
        ) from None
    except ValueError:
        # A function of C has no signature.
        pass
    try:
        made = function(*arguments)
    # The function is code of the user.
    except Exception as error:
        raise ValueError(f"network {text} failed: {_words(error)}") from error
    f = _network(text, made)
    parts = {n: _part(f, n) for n in ("features", "preactivations")}
    f = linalg.prepare_network(attacks.binary(f) if binary else f)
    return Own(text, file, f, parts["features"] or f, parts["preactivations"])


def _function(text: str) -> Callable[..., Any]:
    """Imports the function of one --network."""
    name, colon, attribute = text.partition(":")
    if not (name and colon and attribute) or name.endswith(".py") or "/" in name:
        raise ValueError(
            f"network is {text!r}; it must be MODULE:FUNCTION, such as mine:make for "
            "the function make of mine.py."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    # A folder "experiments" of the user's own adds its modules to this project's.
    own = str(Path.cwd() / "experiments")
    if own not in experiments.__path__:
        experiments.__path__.append(own)
    try:
        module = importlib.import_module(name)
    # The module is code of the user.
    except Exception as error:
        raise ValueError(
            f"network is {text}; the module {name} cannot be imported from {here} or "
            f"the Python path: {_words(error)}"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"network is {text}; {name} has no function {attribute}.")
    function: Callable[..., Any] = found
    return function


def _network(text: str, made: Any) -> linalg.Network:
    """Returns the network that a function of the user returned, in inference mode."""
    if isinstance(made, nn.Module):
        raise ValueError(
            f"network {text} returned a Linen module without variables; return "
            "opnorm.network(module, variables)."
        )
    if isinstance(made, nnx.Module):
        made = opnorm.network(made)
    if not callable(made):
        raise ValueError(
            f"network {text} returned a {type(made).__name__}; it must return a "
            "function of a batch, or a pytree that can be called, such as "
            "jax.tree_util.Partial(apply, variables)."
        )
    network: linalg.Network = made
    return network


def _part(f: linalg.Network, name: str) -> linalg.Network | None:
    """Returns an attribute of a network that is a network too, or None."""
    if isinstance(f, models.Network):
        # The attribute is there for modules of opnorm.models, which have the option.
        call = inspect.signature(type(f.module).__call__)
        if "outputs" not in call.parameters:
            return None
    found = getattr(f, name, None)
    return linalg.prepare_network(found) if callable(found) else None


def check(own: Own, examples: data.Dataset) -> None:
    """Raises a ValueError unless a network takes the examples; nothing is computed.

    Args:
      own: the network.
      examples: images and classes to measure it on.
    """
    images = _array_shape((2, *examples.image_shape), jnp.float32)
    try:
        outputs = linalg.output_shapes(own.f, images)
    # The network is code of the user.
    except Exception as error:
        raise ValueError(
            f"network {own.name} does not take the images of {examples.name}, a batch "
            f"(B, {', '.join(map(str, examples.image_shape))}) of float32 in [0, 1]: "
            f"{_words(error)}"
        ) from error
    shape = getattr(outputs, "shape", None)
    if shape in ((2,), (2, 1)):
        raise ValueError(
            f"network {own.name} gives one logit for each image; give --binary, which "
            "makes two classes of it, class 1 where the logit is above 0."
        )
    if shape is None or len(shape) != 2 or shape[0] != 2:
        given = type(outputs).__name__ if shape is None else f"the shape {shape}"
        raise ValueError(
            f"network {own.name} gives {given} for 2 images; it must give logits "
            "(B, K), here (2, K)."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(
            f"network {own.name} gives {outputs.dtype}; it must give floating point "
            "logits."
        )
    if shape[1] != examples.num_classes:
        raise ValueError(
            f"network {own.name} gives {shape[1]} logits; {examples.name} has "
            f"{examples.num_classes} classes."
        )


def fingerprint(own: Own, examples: data.Dataset, batch_size: int) -> str:
    """Computes a digest over a network and the examples that it is measured on.

    The code of a network cannot be compared. The digest is over the source of the
    user's module, the arrays of the network where it is a pytree, and its logits for
    all examples.

    Args:
      own: the network.
      examples: the examples.
      batch_size: examples per call.
    """
    module = sys.modules[own.name.partition(":")[0]]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        source = ""
    images = np.asarray(examples.pixels())
    arrays = {
        jax.tree_util.keystr(path): _plain(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(own.f)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic)
    }
    arrays["logits"] = analysis.in_batches(_logits, own.f, (images,), batch_size)
    return cache.identity({"network": own.name, "source": source}, arrays, examples)


def _plain(leaf: jax.Array | np.ndarray | np.generic) -> Any:
    """Returns the numbers of an array; a layer of dropout may hold typed keys."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


@linalg.network_program
def _logits(f: linalg.Network, x: jax.Array) -> jax.Array:
    found: jax.Array = f(x)
    return found


def read_variables(path: str) -> dict[str, Any]:
    """Reads the variables of a network; nothing in the file is executed.

    Args:
      path: a ``.npz`` or ``.safetensors`` file, or a directory that orbax has written:
        a checkpoint, or the folder of a ``CheckpointManager``, whose newest step is
        read.

    Returns:
      Arrays by name. Names with "/" become nested dictionaries.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for a file of another kind, or one that cannot be read.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"variables is {path}; there is no such file.")
    if place.is_dir():
        return _read_orbax(place)
    if place.suffix not in (".npz", ".safetensors"):
        raise ValueError(
            f"variables is {path}; it must be a .npz or .safetensors file, or a "
            "directory of orbax."
        )
    return nested(models.read_arrays(place), path)


def _read_orbax(directory: Path) -> dict[str, Any]:
    """Reads a checkpoint of orbax as nested dictionaries of NumPy arrays."""
    with extras.needed("--variables of a directory", extra="train"):
        import orbax.checkpoint as ocp

    folder = _checkpoint(directory.absolute())
    try:
        # The handler itself, since the folder of an item has no metadata of its own.
        reader = ocp.PyTreeCheckpointHandler()
        plain = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            reader.metadata(folder).tree,
        )
        found = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
        reader.close()
    # Orbax and its libraries raise all kinds of errors for a damaged file.
    except Exception as error:
        raise ValueError(
            f"variables is {directory}; orbax cannot read it: {_words(error)}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"variables is {directory}; it holds a {type(found).__name__}, and it must "
            "hold a dictionary of variables."
        )
    return found


def _checkpoint(directory: Path) -> Path:
    """Returns the folder of a checkpoint: itself, or the newest step's inside it."""
    steps = [step for step in directory.iterdir() if step.name.isdigit()]
    folder = max(steps, key=lambda step: int(step.name), default=directory)
    # A step of a CheckpointManager has a folder for each of its items.
    inside = folder / "default"
    folder = inside if inside.is_dir() else folder
    if not (folder / "_METADATA").exists():
        raise ValueError(
            f"variables is {directory}; it is no checkpoint of orbax, nor a folder of "
            "steps that are."
        )
    return folder


def nested(arrays: Mapping[str, np.ndarray], path: str) -> dict[str, Any]:
    """Returns arrays whose names have "/" in nested dictionaries.

    Args:
      arrays: the arrays by name.
      path: the file that holds them, for errors.

    Raises:
      ValueError: if a name is that of an array and the beginning of other names.
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(
                    f"variables is {path}; {folder} of {name} is an array in it too."
                )
        if last in place:
            raise ValueError(
                f"variables is {path}; {name} is also the beginning of other names."
            )
        place[last] = array
    return tree


def _words(error: Exception) -> str:
    """Returns the kind of an error, and the first lines of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:300]}"
