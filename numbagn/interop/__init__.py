"""Adapters to other libraries, one module each: importing `numbagn.interop.autograd` imports autograd, and so on."""
