"""Data for object detection: conversion to COCO, checks, splits, generated data. No torch, no OpenMMLab."""
