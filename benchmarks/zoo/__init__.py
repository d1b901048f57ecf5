"""Tiny random models of many architectures, trained by each engine and by plain PyTorch: do they agree?"""
