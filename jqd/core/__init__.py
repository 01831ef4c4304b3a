"""What happens to a job: pure decisions and the facts they emit."""
