"""The model, the data of one site, and what training means here.

Flower starts a new process for every message. torch is imported where it is used, so that a message
that trains nothing does not wait for it.
"""

from __future__ import annotations

from typing import Any

LEARNING_RATE, BATCH, EPOCHS = 0.2, 32, 1


def make_model() -> Any:
    """A softmax classifier of 8 x 8 pixels."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def state_of(arrays: Any) -> Any:
    """A message's model as PyTorch wants it; Flower converts only where torch is loaded."""
    import torch  # noqa: F401  # loading it is enough

    return arrays.to_torch_state_dict()


def load_data(partition: int, partitions: int) -> tuple[Any, Any]:
    """One site's training records: every ``partitions``-th one. The last fifth is for testing."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    end = len(labels) * 4 // 5
    return images[:end][partition::partitions], labels[:end][partition::partitions]


def load_test_data() -> tuple[Any, Any]:
    """The last fifth of the records."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    start = len(digits.target) * 4 // 5
    images = torch.tensor(digits.images[start:] / 16.0, dtype=torch.float32)
    return images, torch.tensor(digits.target[start:])


def train(state: Any, partition: int, partitions: int, server_round: int) -> tuple[Any, int, float]:
    """Some epochs of SGD from a state; the new state, how many records, and the mean loss."""
    import torch

    torch.set_num_threads(1)
    model = make_model()
    model.load_state_dict(state)
    images, labels = load_data(partition, partitions)
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    shuffled = torch.Generator().manual_seed(1000 * server_round + partition)
    total = 0.0
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels), generator=shuffled)
        for batch in order.split(BATCH):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
    return model.state_dict(), len(labels), total / (EPOCHS * len(labels))


def accuracy(state: Any) -> float:
    """Share of the test records that a state gets right."""
    import torch

    model = make_model()
    model.load_state_dict(state)
    images, labels = load_test_data()
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())
