#!/bin/sh
# Makes the corpus that fuzzing starts from: the recorded pods, each in the review that creates it, and the seeds.
set -eu
cd "$(dirname "$0")"
corpus=corpus/review
mkdir -p "$corpus"
cp seeds/*.json "$corpus"
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
