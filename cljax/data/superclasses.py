"""Superclasses: named groups of classes, those of CIFAR-100 among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cljax.numbers import whole

Groups = tuple[tuple[str, tuple[int, ...]], ...]
"""`((name, classes), ...)`: groups of a data set's classes, by number."""

CIFAR100 = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""The superclasses of CIFAR-100 in their official order, with the names of their classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""


def groups_of(
    classes: Sequence[str], given: Mapping[str, Sequence[str | int]] | None = None, *, name: str = ""
) -> Groups:
    """The superclasses of a data set by number: those given, or CIFAR-100's.

    Args:
      classes: the names of the data set's classes. CIFAR-100's may be mere numbers, its classes being in alphabetical
        order.
      given: names or numbers of the classes of each superclass; some classes may be left out.
      name: of the data set.

    Raises:
      ValueError: a class that there is not, or that two superclasses have; an empty superclass; or none given for a
        data set whose classes are not CIFAR-100's.

    Example:
      >>> groups_of(("cat", "dog", "car"), {"animals": ["dog", "cat"], "things": [2]})
      (('animals', (1, 0)), ('things', (2,)))
    """
    if given is None:
        official = sorted(member for members in CIFAR100.values() for member in members)
        if name == "cifar100" and list(classes) == list(map(str, range(100))):
            classes = official
        if set(classes) != set(official):
            raise ValueError(
                "Superclasses are known of CIFAR-100 only. Give those of your data set to streams.by_superclass as "
                "groups={'name': [classes]}, or divide the classes with streams.split and class_order and sizes."
            )
        given = CIFAR100
    numbers = {member: number for number, member in enumerate(classes)}
    found, used = [], set()
    for title, members in given.items():
        what = f"A class of the superclass {title!r}"
        group = [numbers.get(one, -1) if isinstance(one, str) else whole(what, one, least=-1) for one in members]
        for member, number in zip(members, group, strict=True):
            if not 0 <= number < len(classes) or number in used:
                state = "is in more than one superclass" if number in used else "is no class of the data set"
                raise ValueError(f"{member!r} of the superclass {title!r} {state}.")
            used.add(number)
        if not group:
            raise ValueError(f"The superclass {title!r} has no classes. Leave it out.")
        found.append((title, tuple(group)))
    return tuple(found)
