"""`torchrun ... -m accel.distributed`: see `accel.distributed.command`."""

from accel.distributed.command import main

if __name__ == "__main__":
    main()
