# defectgen on a CPU, with the model that ships. Nothing is downloaded when it runs:
#
#   docker build --tag defectgen .
#   docker run --rm --network none --user "$(id -u):$(id -g)" --volume "$PWD:/work" defectgen synthesize -n 8
FROM python:3.12-slim

# First, so that a change of the sources does not install it again. This index has builds without CUDA.
RUN pip install --no-cache-dir "torch>=2.6,<2.14" --index-url https://download.pytorch.org/whl/cpu

COPY . /src
RUN pip install --no-cache-dir /src && rm -r /src

# A name for users without an entry in /etc/passwd, as with --user.
ENV HOME=/tmp USER=defectgen
WORKDIR /work
ENTRYPOINT ["defectgen"]
CMD ["--help"]
