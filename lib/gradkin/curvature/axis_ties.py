"""Which axes of a function's values must be permuted alike: union-find over factors of axes.

An axis is a tuple of factors, the slowest first, whose sizes multiply to its length; one of length
1 has none. A factor is split where the function splits the axis (a reshape to heads), or where it
meets a product (flattened positions x channels).
"""

Axis = tuple[int, ...]
Axes = tuple[Axis, ...]


class Ties:
    """Factors, tied to one another, fixed in their order, or split into two."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.size: list[int] = []
        self.fixed: list[bool] = []
        self.parts: dict[int, Axis] = {}

    def new(self, size: int, *, fixed: bool = False) -> Axis:
        """An axis that nothing is known of yet."""
        if size <= 1:
            return ()
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.fixed.append(fixed)
        return (self.parent[-1],)

    def axes(self, shape: tuple[int, ...], *, fixed: bool = False) -> Axes:
        """Such axes for a whole shape."""
        return tuple(self.new(size, fixed=fixed) for size in shape)

    def flat(self, axis: Axis) -> Axis:
        """The factors as they are now: one for those that are tied, the parts of those split."""
        found: Axis = ()
        for factor in axis:
            while self.parent[factor] != factor:
                factor = self.parent[factor]
            found += self.flat(self.parts[factor]) if factor in self.parts else (factor,)
        return found

    def fix(self, *axes: Axis) -> None:
        """Let the order along these axes matter."""
        for axis in axes:
            for factor in self.flat(axis):
                self.fixed[factor] = True

    def split(self, factor: int, slow: int) -> None:
        """Make a factor the product of ``slow`` and the rest."""
        fixed = self.fixed[factor]
        rest = self.size[factor] // slow
        self.parts[factor] = self.new(slow, fixed=fixed) + self.new(rest, fixed=fixed)

    def tie(self, left: Axis, right: Axis) -> None:
        """Let two axes of one length be permuted alike; fix what has no common factors."""
        while True:
            left, right = self.flat(left), self.flat(right)
            while left and right and left[0] == right[0]:
                left, right = left[1:], right[1:]
            if not (left and right):
                return self.fix(left, right)
            (one, m), (other, n) = ((side[0], self.size[side[0]]) for side in (left, right))
            if m == n:
                self.parent[other] = one
                self.fixed[one] = self.fixed[one] or self.fixed[other]
            elif n % m == 0:
                self.split(other, m)
            elif m % n == 0:
                self.split(one, n)
            else:
                return self.fix(left, right)

    def tie_axes(self, left: Axes, right: Axes) -> None:
        """Tie axis by axis."""
        for one, other in zip(left, right):
            self.tie(one, other)

    def reshaped(self, axes: Axes, shape: tuple[int, ...]) -> Axes:
        """The axes of a reshaped value: factors are kept in order, and split where they must be."""
        left = sum(axes, ())
        found: list[Axis] = []
        for size in shape:
            axis: Axis = ()
            while size > 1:
                left = self.flat(left)
                if not left:
                    break
                here = self.size[left[0]]
                if size % here == 0:
                    axis, left, size = axis + left[:1], left[1:], size // here
                elif here % size == 0:
                    self.split(left[0], size)
                else:
                    break
            if size != 1:  # no common factors, or an empty value
                self.fix(axis, left)
                rest = self.axes(shape[len(found) :], fixed=True)
                return (*found, *rest)
            found.append(axis)
        return tuple(found)
