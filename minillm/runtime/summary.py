"""The table of a module's parameters that decoders and methods print."""

from torch import nn


class Summarised(nn.Module):
    """A module with a summary of its parameters."""

    def summary(self) -> str:
        """A table of the parameters: layer, shape, dtype, count, trainable share and bytes.

        Layers of the same name in every block are one line, with their number; tied weights are counted once.
        """
        groups: dict[tuple[str, ...], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            role = ".".join("*" if part.isdigit() else part for part in name.removeprefix("decoder.").split("."))
            shape = " x ".join(map(str, parameter.shape))
            groups.setdefault((role, shape, str(parameter.dtype).removeprefix("torch.")), []).append(parameter)
        rows = [("layer", "shape", "dtype", "layers", "parameters", "trainable", "bytes")]
        rows += [(*what, str(len(some)), *_counted(some)) for what, some in groups.items()]
        rows.append(("total", "", "", "", *_counted(list(self.parameters()))))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        return "\n".join("  ".join([layer.strip().ljust(widths[0]), *cells]).rstrip() for layer, *cells in lines)


def _counted(parameters: list[nn.Parameter]) -> tuple[str, str, str]:
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return f"{count:,}", f"{trained / count:.2%}", f"{size:,}"
