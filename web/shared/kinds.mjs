// The nodes of this pack that its scripts know.
export const APPLY = 'SeqLoRA_ApplyComposed'
export const CREATE = 'SeqLoRA_CreateLibrary'
export const LOAD = 'SeqLoRA_LoadLibrary'
export const OPTIONS = 'SeqLoRA_TrainingOptions'
export const PICTURES = 'SeqLoRA_LoadPictures'
export const PROMPT = 'SeqLoRA_ConceptPrompt'
export const TRAIN = 'SeqLoRA_TrainConcept'

// Those that take a concept from the tab, and the text that it goes into.
export const TAKING = { [APPLY]: 'concepts', [PROMPT]: 'text' }

export const isOurs = (node) => node.comfyClass?.startsWith('SeqLoRA_')
