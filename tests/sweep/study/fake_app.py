import hydra


@hydra.main(config_path="conf", config_name="study", version_base="1.3")
def main(config):
    raise AssertionError("the launcher runs the cells, not Hydra's task function")


if __name__ == "__main__":
    main()
