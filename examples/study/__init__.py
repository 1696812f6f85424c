"""The study's tasks and teachers: does talking teach better than telling?"""
