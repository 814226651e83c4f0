"""`accelerate launch -m foveate.train RECIPE`: what `foveate train RECIPE` does, in several processes."""

from foveate.train.command import call, train

if __name__ == "__main__":
    call(train, "python -m foveate.train")
