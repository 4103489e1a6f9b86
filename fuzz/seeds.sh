#!/bin/sh
# Makes the corpora that fuzzing starts from: the seeds of each target; for reviews the recorded pods, too, each in the
# review that creates it.
set -eu
cd "$(dirname "$0")"
for seeds in seeds/*; do
  corpus=corpus/$(basename "$seeds")
  mkdir -p "$corpus"
  cp "$seeds"/* "$corpus"
done
corpus=corpus/review
for pod in ../tests/fixtures/pods/*.json; do
  # Larger ones slow down each step, and differ from the others in size only.
  [ "$(wc -c <"$pod")" -le 32768 ] || continue
  {
    printf '%s' '{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",'
    printf '%s' '"kind":{"group":"","version":"v1","kind":"Pod"},"namespace":"gitlab-runner","operation":"CREATE","object":'
    cat "$pod"
    printf '}}'
  } >"$corpus/pod-$(basename "$pod")"
done
